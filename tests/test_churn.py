"""Many connections, come and gone: threads, descriptors and memory are back."""

from __future__ import annotations

import gc
import socket
import weakref

from pyhv import HvWebSocketClient, WsOpcode
from support import (
    HOST,
    LIMIT,
    RawClient,
    RecordingClient,
    RecordingServer,
    connected,
    open_descriptors,
    port_of,
    resident_bytes,
    thread_names,
    tick_until,
    url_of,
    wait_until,
)
from support_load import CountingServer, CountingServerProgram, allow_descriptors, refusing_port, sockets_of

CONNECTIONS = 2000
AT_ONCE = 200
#: Bytes that the server's memory may have grown by after `ROUNDS` times as many connections as in the warm-up
#: round: a leak of 300 bytes per connection shows. The allocator's own noise is up to half of it.
ROUNDS = 6
MARGIN = 300 * CONNECTIONS * ROUNDS


def churn(port: int, count: int) -> None:
    """Opens `count` connections, `AT_ONCE` together, and drops them in every way there is."""
    for begin in range(0, count, AT_ONCE):
        clients = [RawClient(port, upgrade=False) for _ in range(min(AT_ONCE, count - begin))]
        for number, raw in enumerate(clients):
            if number % 10 == 9:
                raw.send_bytes(b"GET / HTTP/1.1\r\nHost: x\r\nUpgr")  # a handshake that breaks off
            elif number % 10 == 8:
                raw.upgrade("/")
                raw.send_frame(WsOpcode.TEXT, b"half a mess", length=100)  # a frame that breaks off
            else:
                raw.upgrade("/")
                raw.send_text("hello")
                raw.send_binary(bytes(3000))
        for number, raw in enumerate(clients):
            match number % 10:
                case 0 | 1:  # gracefully, asked by the client
                    raw.send_close(1000)
                    assert raw.read_close().close_code == 1000
                    raw.expect_end()
                case 2 | 3:  # gracefully, asked by the server
                    raw.send_text("close")
                    assert raw.read_close().close_code == 1000
                    raw.send_close(1000)
                    raw.expect_end()
                case 4:  # a close frame, and gone before the answer
                    raw.send_close(1001)
                case 5:  # with echoes unread: a reset
                    pass
                case 6:
                    raw.socket.shutdown(socket.SHUT_WR)
                    assert raw.read_message() == "hello"
                case _:
                    raw.reset()
            raw.socket.close()


def test_two_thousand_connections_leave_nothing_behind() -> None:
    allow_descriptors(3 * AT_ONCE)
    with CountingServerProgram(close_timeout=0.2) as server:
        churn(server.port, CONNECTIONS)  # the warm-up: pools and tables grow to their size
        server.wait_until_empty()
        before = server.facts()
        memory = resident_bytes(server.pid)
        for _ in range(ROUNDS):
            churn(server.port, CONNECTIONS)
        server.wait_until_empty()
        wait_until(lambda: server.facts().sockets <= before.sockets, what="every socket is closed")
        assert server.facts() == before
        wait_until(
            lambda: resident_bytes(server.pid) - memory < MARGIN,
            what=f"memory is back to {memory} + {MARGIN}",
        )
        assert server.counts()["opened"] >= CONNECTIONS * (ROUNDS + 1) * 8 // 10
        server.stop()


def test_a_closed_connection_keeps_no_memory_until_close_timeout() -> None:
    """Its timer has nothing left to end. Otherwise whoever connects and closes in a loop sets the size."""
    with CountingServerProgram(close_timeout=1000) as server:
        churn(server.port, CONNECTIONS)
        server.wait_until_empty()
        memory = resident_bytes(server.pid)
        for _ in range(ROUNDS):
            churn(server.port, CONNECTIONS)
        server.wait_until_empty()
        wait_until(lambda: resident_bytes(server.pid) - memory < MARGIN, limit=3, what="memory is back")
        server.stop()


def test_idle_connections_cost_no_threads_and_all_are_closed_by_stop() -> None:
    allow_descriptors(2 * CONNECTIONS)
    with CountingServerProgram() as server:
        server.counts()
        before = server.facts()
        clients = [RawClient(server.port) for _ in range(CONNECTIONS // 2)]
        try:
            wait_until(lambda: server.counts()["channels"] == len(clients))
            assert server.facts().threads == before.threads
            assert server.process.stdin is not None
            server.process.stdin.close()  # it stops: 1001 to each, and waits for their answers
            for raw in clients:
                assert raw.read_close().close_code == 1001
                raw.send_close(1001)
                raw.expect_end()
            assert server.finish() == 0
        finally:
            for raw in clients:
                raw.socket.close()


def test_two_thousand_handshakes_without_a_tick_then_one_tick() -> None:
    allow_descriptors(3 * CONNECTIONS)
    before = sockets_of()
    with RecordingServer() as server:
        server.start(0)
        threads = len(thread_names())
        clients = []
        try:
            for number in range(CONNECTIONS):
                raw = RawClient(port_of(server), f"/{number}")
                clients.append(raw)
                raw.send_text(f"from {number}")
                raw.send_ping()
                assert raw.read_frame().opcode == WsOpcode.PONG  # answered without the program
            assert not server.record.calls
            assert len(thread_names()) == threads
            assert server.tick() == 2 * CONNECTIONS
            assert server.record.count("open") == server.record.count("message") == CONNECTIONS
            assert server.tick() == 0
            assert len(server.channels) == CONNECTIONS
            for number, channel in enumerate(server.channels):
                assert server.record.of(channel) == [
                    ("open", channel.url),
                    ("message", f"from {channel.url[1:]}"),
                ], number
            assert {channel.url for channel in server.channels} == {f"/{n}" for n in range(CONNECTIONS)}
            server.broadcast("hello all")
            for raw in clients:
                assert raw.read_message() == "hello all"
        finally:
            for raw in clients:
                raw.reset()
        tick_until(lambda: server.record.count("close") == CONNECTIONS, server)
        assert not server.channels
    assert sockets_of() <= before


def test_fifty_starts_and_stops_leave_nothing_behind() -> None:
    def once(server: RecordingServer) -> None:
        server.start(0)
        client = connected(server)
        with RawClient(port_of(server)):
            tick_until(lambda: len(server.channels) == 2, server)
            client.send("hello")
            tick_until(lambda: server.record.count("message"), server)
            # With a client that answers the close frame, and one that has just gone away.
            client.close()
            tick_until(lambda: client.close_code, client, server)
        server.stop()
        assert not server.is_running
        assert server.record.count("close") == 2

    once(RecordingServer())
    gc.collect()
    threads, descriptors = thread_names(), len(open_descriptors())
    again = RecordingServer()
    for number in range(50):
        if number % 2:
            once(RecordingServer())
        else:
            once(again)
            again.record.calls.clear()
    del again
    gc.collect()
    assert thread_names() == threads
    # What `again` kept to wait on went with it.
    assert len(open_descriptors()) == descriptors


def test_two_hundred_clients_make_no_threads() -> None:
    allow_descriptors(2000)
    server = CountingServer()
    server.start(0)
    warm = connected_plain(server)
    gc.collect()
    threads, sockets = thread_names(), sockets_of()
    clients = [RecordingClient() for _ in range(200)]
    for client in clients:
        client.connect(url_of(server))
    tick_until(lambda: all(client.is_connected for client in clients), server, *clients)
    assert thread_names() == threads
    for number, client in enumerate(clients):
        client.send(f"{number}")
    tick_until(lambda: all(client.received for client in clients), server, *clients)
    assert [client.received for client in clients] == [[f"{number}"] for number in range(200)]
    assert thread_names() == threads
    for client in clients[:100]:
        client.close()
    for client in clients[100:]:
        client.send("close")
    tick_until(lambda: all(client.close_code == 1000 for client in clients), server, *clients)
    tick_until(lambda: len(server.channels) == 1, server)
    wait_until(lambda: sockets_of() == sockets, what="every socket is closed")
    assert thread_names() == threads
    warm.close()
    server.stop()


def connected_plain(server: CountingServer) -> HvWebSocketClient:
    client = HvWebSocketClient()
    client.connect(url_of(server))
    tick_until(lambda: client.is_connected, client, server)
    return client


def test_clients_that_are_forgotten_close_their_sockets() -> None:
    server = CountingServer()
    server.start(0)
    server.fileno()
    connected_plain(server)
    gc.collect()
    tick_until(lambda: not server.channels, server, what="the forgotten client is gone")
    descriptors = len(open_descriptors())
    for _ in range(50):
        client = connected_plain(server)
        client.send("unread")
        client.fileno()
        forgotten = weakref.ref(client)
        del client
        gc.collect()
        assert forgotten() is None
    tick_until(lambda: not server.channels, server, what="every forgotten client is gone")
    tick_until(lambda: len(open_descriptors()) == descriptors, server, limit=5, what="all is closed")
    server.stop()


def test_a_server_that_is_forgotten_closes_its_sockets() -> None:
    def once() -> int:
        server = CountingServer()
        server.start(0)
        server.fileno()
        port = port_of(server)
        raw = RawClient(port)
        while not server.channels:
            server.tick(LIMIT)
        forgotten = weakref.ref(server)
        del server
        gc.collect()
        assert forgotten() is None
        raw.read_to_end()
        raw.socket.close()
        return port

    once()
    before = len(open_descriptors())
    ports = [once() for _ in range(20)]
    wait_until(lambda: len(open_descriptors()) == before, limit=5, what="all is closed")
    for port in ports:
        with socket.socket() as probe:
            probe.settimeout(LIMIT)
            assert probe.connect_ex((HOST, port)) != 0


def test_failed_connections_leave_nothing_behind() -> None:
    bound, port = refusing_port()
    with bound:
        client = RecordingClient()
        client.fileno()  # from here on it has what it waits on
        client.connect(f"ws://{HOST}:{port}/")
        tick_until(lambda: client.record.count("close"), client)
        threads, descriptors = thread_names(), len(open_descriptors())
        for _ in range(200):
            client.connect(f"ws://{HOST}:{port}/")
            tick_until(lambda: client.close_code, client)
        assert client.record.count("error") == client.record.count("close") == 201
        assert client.record.count("open") == 0
        assert thread_names() == threads
        wait_until(lambda: len(open_descriptors()) <= descriptors, what="every descriptor is closed")


def test_a_client_closed_before_it_has_ticked_never_opens() -> None:
    """The connection is made by then; the program has not heard of it and never does."""
    with RecordingServer() as server:
        server.start(0)
        client = RecordingClient()
        client.connect(url_of(server))
        tick_until(lambda: server.channels, server)  # and the client has not ticked
        client.close()
        assert not client.is_connected
        tick_until(lambda: server.record.count("close"), server, client)
        tick_until(lambda: client.record.count("close"), server, client)
        assert [call.what for call in client.record.calls] == ["close"]
