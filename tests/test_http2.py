"""HTTP/2 connections by hand: how they end, and streams over them."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from pyhv import StreamWriter
from support import HOST, LIMIT, RecordingServer, tick_until
from support_tls import Certificates, make_certificates, tls_port_of

# RFC 9113 sections 6 and 6.1
DATA = 0
END_STREAM = 1


class Peer:
    """An HTTP/2 client that reads when it is told to."""

    def __init__(self, server: RecordingServer, certificates: Certificates, window: int | None = None) -> None:
        context = certificates.context()
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((HOST, tls_port_of(server)), timeout=LIMIT)
        self.socket = context.wrap_socket(plain, server_hostname=HOST)
        assert self.socket.selected_alpn_protocol() == "h2"
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()
        if window is not None:
            self.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.socket.sendall(self.connection.data_to_send())
        self.socket.setblocking(False)
        self.ended = False
        self.terminated = False  # GOAWAY
        self.updates = window is None  # of the flow-control windows
        self.data: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.reset: set[int] = set()
        self.unread = b""

    def get(self, path: str) -> int:
        stream = self.connection.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", path)]
        self.connection.send_headers(stream, fields, end_stream=True)
        self.send()
        return int(stream)

    def send(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.socket.setblocking(True)
            self.socket.sendall(data)
            self.socket.setblocking(False)

    def read(self) -> None:
        """What is there, frame by frame: h2 takes what follows a GOAWAY for an error, though a server may end its
        streams behind it (RFC 9113 section 6.8)."""
        try:
            while data := self.socket.recv(65536):
                self.unread += data
                while len(self.unread) >= 9 and len(self.unread) >= 9 + int.from_bytes(self.unread[:3], "big"):
                    length = 9 + int.from_bytes(self.unread[:3], "big")
                    frame, self.unread = self.unread[:length], self.unread[length:]
                    self.take(frame)
                self.send()
            self.ended = True
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.ended = True

    def take(self, frame: bytes) -> None:
        kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:9], "big")
        if self.terminated:
            if kind == DATA:
                self.data[stream] = self.data.get(stream, b"") + frame[9:]
                if flags & END_STREAM:
                    self.finished.add(stream)
            return
        for event in self.connection.receive_data(frame):
            match event:
                case h2.events.DataReceived(stream_id=number, data=data, flow_controlled_length=taken):
                    self.data[number] = self.data.get(number, b"") + data
                    if self.updates:
                        self.connection.acknowledge_received_data(taken, number)
                case h2.events.StreamEnded(stream_id=number):
                    self.finished.add(number)
                case h2.events.StreamReset(stream_id=number):
                    self.reset.add(number)
                case h2.events.ConnectionTerminated():
                    self.terminated = True

    def has(self, stream: int, part: bytes) -> bool:
        self.read()
        return part in self.data.get(stream, b"")

    def finished_with(self, stream: int) -> bytes | None:
        self.read()
        return self.data[stream] if stream in self.finished else None

    def was_reset(self, stream: int) -> bool:
        self.read()
        return stream in self.reset

    def over(self) -> bool:
        self.read()
        return self.ended or self.terminated

    def close(self) -> None:
        self.socket.close()


class H2Server(RecordingServer):
    def on_stream_close(self, writer: StreamWriter) -> None:
        self.record.add("stream close", None, writer)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def server(certificates: Certificates) -> Iterator[H2Server]:
    server = H2Server()
    server.get("/ping", lambda req, resp: resp.text("pong"))
    server.sse("/events", lambda req, writer: writer.event("hello") and None, keep_alive=None)
    server.start(0, header_timeout=0.4, max_buffered=100_000, **certificates.settings)
    yield server
    server.stop()


def test_a_connection_without_a_request_is_closed_after_header_timeout(
    server: H2Server, certificates: Certificates
) -> None:
    peer = Peer(server, certificates)
    tick_until(peer.over, server)
    assert peer.terminated, "GOAWAY comes first"
    peer.close()


def test_an_idle_connection_is_closed_and_pings_do_not_keep_it(server: H2Server, certificates: Certificates) -> None:
    peer = Peer(server, certificates)
    stream = peer.get("/ping")
    tick_until(lambda: peer.finished_with(stream) == b"pong", server)

    def pinged_to_the_end() -> bool:
        if not peer.over():
            peer.connection.ping(b"12345678")
            try:
                peer.send()
            except OSError:
                return True
        return peer.over()

    tick_until(pinged_to_the_end, server)
    peer.close()


def test_a_connection_with_an_open_stream_is_not_idle(server: H2Server, certificates: Certificates) -> None:
    peer = Peer(server, certificates)
    stream = peer.get("/events")
    tick_until(lambda: peer.has(stream, b"hello"), server)
    # Two others are closed for idleness meanwhile.
    for _ in range(2):
        other = Peer(server, certificates)
        tick_until(other.over, server)
        other.close()
    assert not peer.over()
    (writer,) = server.streams
    writer.event("still here")
    tick_until(lambda: peer.has(stream, b"still here"), server)
    peer.close()


def test_a_client_that_resets_its_stream_has_left(server: H2Server, certificates: Certificates) -> None:
    peer = Peer(server, certificates)
    first, second = peer.get("/events"), peer.get("/events")
    tick_until(lambda: len(server.streams) == 2, server)
    tick_until(lambda: peer.has(first, b"hello") and peer.has(second, b"hello"), server)
    peer.connection.reset_stream(first, h2.errors.ErrorCodes.CANCEL)
    peer.send()
    tick_until(lambda: len(server.streams) == 1, server)
    assert len(server.record.values("stream close")) == 1
    server.streams[0].event("for the second")
    tick_until(lambda: peer.has(second, b"for the second"), server)
    peer.close()
    tick_until(lambda: server.streams == [], server)


def test_a_stream_whose_window_stays_shut_is_broken_off_and_its_connection_lives(
    server: H2Server, certificates: Certificates
) -> None:
    peer = Peer(server, certificates, window=1000)
    stream = peer.get("/events")
    tick_until(lambda: len(server.streams) == 1, server)
    (writer,) = server.streams
    end = time.monotonic() + LIMIT
    while writer.event("x" * 5000) and time.monotonic() < end:
        server.tick()
    tick_until(lambda: server.streams == [], server)
    assert server.refusals["max_buffered"] == 1
    ping = peer.get("/ping")
    tick_until(lambda: peer.finished_with(ping) == b"pong", server)
    # The client is told at once or, if HTTP/2 waits for its window, once there is room.
    if not peer.was_reset(stream):
        peer.connection.increment_flow_control_window(10_000_000, stream)
        peer.send()
    tick_until(lambda: peer.was_reset(stream), server)
    peer.close()


def test_stop_does_not_wait_for_a_client_that_does_not_read(certificates: Certificates) -> None:
    server = H2Server()
    server.get("/ping", lambda req, resp: resp.text("pong"))
    server.start(0, **certificates.settings)
    peer = Peer(server, certificates)
    stream = peer.get("/ping")
    tick_until(lambda: peer.finished_with(stream) == b"pong", server)
    begun = time.monotonic()
    server.stop(timeout=60)
    assert time.monotonic() - begun < 30, "hyper waits for the answer to a PING"
    peer.close()


def test_stop_ends_streams_behind_what_was_written(server: H2Server, certificates: Certificates) -> None:
    peer = Peer(server, certificates)
    stream = peer.get("/events")
    tick_until(lambda: peer.has(stream, b"hello"), server)
    (writer,) = server.streams
    writer.event("last words")
    server.stop()
    end = time.monotonic() + LIMIT
    while not peer.ended and time.monotonic() < end:
        peer.read()
        time.sleep(0.001)
    assert b"last words" in peer.data[stream]
    assert stream in peer.finished
    peer.close()
