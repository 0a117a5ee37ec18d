"""The server: HTTP and WebSocket on one port, every callback on the thread that ticks."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar

from pyhv._native import HttpRequest, StreamWriter, WebSocketChannel
from pyhv._reporting import Reporting
from pyhv.http import WsUpgrade
from pyhv.routes import Handler, Routes, StreamHandler
from pyhv.stats import Inside
from pyhv.topics import ServerTopics

__all__ = ["Handler", "HvWebServer", "StreamHandler"]

_S = TypeVar("_S", bound="HvWebServer")

_access_log = logging.getLogger("pyhv.access")

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # in every locale


class HvWebServer(Reporting, Inside, Routes, ServerTopics):
    """An HTTP and WebSocket server for a program that owns its main loop.

    Subclass it and override what you need::

        class Echo(HvWebServer):
            def on_init(self):
                self.get("/ping", lambda req, resp: resp.text("pong"))

            def on_ws_message(self, channel, msg):
                channel.send(msg)

        server = Echo()
        server.start(9090)
        while playing:
            server.tick()
            ...
        server.stop()

    Native threads do the I/O without the GIL; `tick()` runs the callbacks on the calling thread, one after the
    other, never one inside another. A main loop that stalls loses no connection.

    A subclass may have an `__init__` of its own and need not call this one.
    """

    _pyhv_log = logging.getLogger("pyhv.server")
    _initialized: bool

    def __new__(cls: type[_S], *args: Any, **kwargs: Any) -> _S:
        self = super().__new__(cls, *args, **kwargs)
        self._initialized = False
        return self

    # What a program overrides. All of it runs inside tick() or stop(), on that thread; none of it may block long,
    # because everybody waits meanwhile.

    def on_init(self) -> None:
        """Runs once, in the first `start()`, before anybody can connect: the place for routes."""

    def on_tick(self) -> None:
        """Runs in every `tick()`, after the callbacks of its events."""

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        """A WebSocket is open. `url`: the path and query that the client asked for."""

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        """A message arrived: str if it was sent as text, bytes if binary. Fragments have been put together."""

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        """A WebSocket has ended; `channel.close_code` and `channel.close_reason` tell how. Nothing follows."""

    def on_ws_upgrade(self, request: WsUpgrade) -> bool | int | None:
        """A client asks for a WebSocket: `request.accept(...)` or `request.refuse(...)`, or return None or True to
        accept, False to refuse with 403, a status to refuse with it.

        Without an override every client is accepted that `allowed_origins` lets in, and no tick is needed for it.
        """
        return None

    def on_ws_drain(self, channel: WebSocketChannel) -> None:
        """Everything that was sent on `channel` has left, after its socket had been full: time to send more."""

    def on_stream_close(self, writer: StreamWriter) -> None:
        """The streamed response has ended: by `writer.close()`, because its client left, or was broken off."""

    def on_error(self, exc: Exception) -> None:
        """A callback raised `exc`, which has been logged with its traceback.

        The WebSocket in whose callback it happened is being closed with 1011; an HTTP request has been answered
        with 500.
        """

    # Life

    def start(
        self,
        port: int | None = None,
        host: str = "127.0.0.1",
        *,
        tls_port: int | None = None,
        sockets: Iterable[socket.socket | int] | None = None,
        tls_sockets: Iterable[socket.socket | int] | None = None,
        reuse_port: bool = False,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        max_message_size: int = 16 << 20,
        max_frame_size: int | None = None,
        max_fragments: int = 1 << 17,
        max_buffered: int = 16 << 20,
        max_pending_bytes: int = 64 << 20,
        max_channel_pending_bytes: int = 1 << 20,
        max_header_size: int = 16 << 10,
        max_body_size: int = 16 << 20,
        max_form_parts: int = 1_000,
        max_form_field_size: int = 1 << 20,
        max_upload_size: int = 256 << 20,
        upload_threshold: int = 256 << 10,
        upload_dir: str | os.PathLike[str] | None = None,
        header_timeout: float = 30.0,
        body_timeout: float = 30.0,
        handler_timeout: float = 30.0,
        send_timeout: float = 60.0,
        close_timeout: float = 5.0,
        handshake_timeout: float = 10.0,
        upgrade_timeout: float = 10.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        idle_timeout: float | None = None,
        app_stall_timeout: float | None = None,
        slow_policy: Literal["close", "drop_newest", "drop_oldest"] = "close",
        compression: Literal["shared", "context"] | None = "shared",
        compression_window_bits: int = 15,
        latest: Callable[[WebSocketChannel, str | bytes], Hashable | None] | None = None,
        max_connections: int = 65_536,
        max_connections_per_address: int | None = None,
        max_concurrent_streams: int = 100,
        max_headers: int = 100,
        max_upgrades_per_second: float | None = None,
        allowed_origins: Literal["*"] | Iterable[str] | None = None,
        subprotocols: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
        max_topic_length: int = 256,
        max_subscriptions_per_channel: int = 1_000,
        max_topics: int = 10_000,
        max_history_bytes: int = 64 << 20,
        backplane: str | None = None,
        backplane_prefix: str = "pyhv",
        backplane_buffer: int = 16 << 20,
        backplane_overflow: Literal["drop_oldest", "refuse"] = "drop_oldest",
        backplane_history: int = 10_000,
        backplane_timeout: float = 10.0,
        backplane_ca_file: str | os.PathLike[str] | None = None,
        backplane_fingerprint: str | None = None,
        backplane_client_certfile: str | os.PathLike[str] | None = None,
        backplane_client_keyfile: str | os.PathLike[str] | None = None,
        backplane_credentials: str | os.PathLike[str] | None = None,
    ) -> None:
        """Listens, and returns at once. Sizes are in bytes, times in seconds.

        :param port: 0 lets the system choose one; the property `port` tells which.
        :param host: a name or address; "0.0.0.0" is every IPv4 address of the machine.
        :param tls_port: serves https and wss there, beside http and ws on `port`, with the same handlers: TLS 1.2 and
            1.3, HTTP/2 where the client knows it. 0 lets the system choose one; the property `tls_port` tells which.
        :param sockets: instead of `port`, sockets that are bound to one, or their descriptors: a supervisor's, or those
            of `listen_fds`. They stay the caller's, who may close them, or leave them open for the time after `stop()`,
            or for other processes that accept from them too. They become non-blocking. Not on Windows.
        :param tls_sockets: the same instead of `tls_port`.
        :param reuse_port: other processes may listen on the same ports at the same time, if all of them say so, and the
            kernel shares the clients out (SO_REUSEPORT; on macOS and the BSDs it may not be even). OSError on systems
            that have no such thing, as Windows.
        :param certfile: PEM file with the certificate and its chain. It and `keyfile` are looked at again when a client
            connects, once a second at most: a renewed certificate needs no restart.
        :param keyfile: PEM file with the private key; None: it is in `certfile`.
        :param max_message_size: a larger WebSocket message ends its channel with 1009.
        :param max_frame_size: the same for one frame of a message; None: only the message counts.
        :param max_fragments: the same for a message of more fragments.
        :param max_buffered: a channel with more than this waiting to be sent is closed with 1008.
        :param max_pending_bytes: when callbacks for this much wait for a tick, reading pauses until the next.
        :param max_channel_pending_bytes: the same for one channel.
        :param max_header_size: a larger request head is answered with 431; at least 8192.
        :param max_body_size: a larger request body, or one that decodes to more, is answered with 413. Of a
            `multipart/form-data` body this is what may be in memory: more text is answered with 413, more files go to
            temporary ones.
        :param max_form_parts: a multipart form with more fields and files is answered with 413; `form()` of one that is
            urlencoded raises BadRequest.
        :param max_form_field_size: the same for a larger text field of a `multipart/form-data` body.
        :param max_upload_size: the same for a larger `multipart/form-data` body, files and all.
        :param upload_threshold: a larger file of such a body goes to a temporary file as it arrives; others stay in
            memory.
        :param upload_dir: the directory for temporary files; None: the system's. They are named "pyhv-upload-..." and
            deleted with the request, but not when the process is killed.
        :param header_timeout: time for a request head to arrive, and between two requests of a connection.
        :param body_timeout: time for a request body to arrive, and one second more for every 500 bytes that have; then
            408.
        :param handler_timeout: time for the program to answer a request, from its last byte on; then 503.
        :param send_timeout: time for which a client may take nothing of an answer before it is dropped.
        :param close_timeout: time for the closing handshake of a WebSocket.
        :param handshake_timeout: time for TLS, and for the first byte, after connecting.
        :param upgrade_timeout: time for `on_ws_upgrade` to run; then 503.
        :param ping_interval: how often a WebSocket peer is pinged by the native side; None: never.
        :param ping_timeout: silence after a ping, after which the channel is closed with 1011; None: never.
        :param idle_timeout: time without a message in either direction, after which a channel is closed with 1001.
        :param app_stall_timeout: time without a tick, after which every channel is closed with 1013.
        :param slow_policy: what happens when `max_buffered` is reached: "close" the channel with 1008, "drop_newest"
            or "drop_oldest" messages, which `channel.dropped` counts.
        :param compression: permessage-deflate (RFC 7692) for messages of 128 bytes and more, if the client offers it:
            "shared" compresses each message by itself, with one compressor for all channels; "context" keeps a context
            for each channel, which makes similar messages smaller and costs some hundred KiB a channel; None: off.
        :param compression_window_bits: largest window of compressor and decompressor as a power of two, 8 to 15.
        :param latest: a function of channel and message that gives the key of the message, such as the name of the
            sensor: of the messages with one key that wait for the same tick only the newest comes, and
            `channel.skipped` counts the others. None, as the default for all: the message stands alone. Runs on the
            ticking thread.
        :param max_connections: further connections are closed as they come.
        :param max_connections_per_address: the same for one peer; a trusted proxy is one peer.
        :param max_concurrent_streams: requests at a time on one HTTP/2 connection; further ones are refused.
        :param max_headers: a request with more header fields is answered with 431.
        :param max_upgrades_per_second: further WebSocket handshakes are answered with 503.
        :param allowed_origins: which web pages may open a WebSocket: None (the default) those of the same host, "*"
            all, or a list of origins such as "https://example.com". Clients that are no browsers send no origin.
        :param subprotocols: what the server speaks, the preferred first; `channel.subprotocol` tells what was agreed.
        :param trusted_proxies: addresses ("127.0.0.1", "::1") and networks ("10.0.0.0/8") of reverse proxies. For their
            connections `client_address` and `scheme` of requests and channels come from X-Forwarded-For and
            X-Forwarded-Proto, or else Forwarded (RFC 7239): the right-most address that is no trusted proxy. A proxy
            has to write one of the two, and one that writes Forwarded has to remove `X-Forwarded-*`, which go first.
        :param max_topic_length: longest name of a topic, in bytes of UTF-8.
        :param max_subscriptions_per_channel: topics that one channel or event stream may have; more are refused.
        :param max_topics: topics whose messages are kept (`keep`); of more the one that was published to longest ago is
            forgotten.
        :param max_history_bytes: what all topics together keep; the same beyond.
        :param backplane: joins the topics of all processes that name the same engine:
            "redis://user:password@host:6379/0", "nats://host:4222", or with TLS "rediss://" and "tls://". None: topics
            are this process's own. The engine may be away, now or later: `on_backplane` tells, and it is tried again
            and again. docs/backplane.md says what that may cost.
        :param backplane_prefix: begins all names that are used there; systems with different ones do not meet.
        :param backplane_buffer: bytes of publishes that wait while the engine is away.
        :param backplane_overflow: what happens to more: "drop_oldest" throws the oldest away, "refuse" the new one, and
            `publish` returns None; `backplane_dropped` counts both.
        :param backplane_history: messages that the engine keeps, of all topics with `keep` together, for processes that
            start or come back. The same for all processes.
        :param backplane_timeout: after so much silence another process is taken for gone, with its members, and a
            connection to the engine for lost. The same for all processes.
        :param backplane_ca_file: for TLS, PEM file with the authorities to trust instead of the system's.
        :param backplane_fingerprint: for TLS, trust only the server whose certificate has this SHA-256.
        :param backplane_client_certfile: for TLS, PEM file with a certificate to show to the engine.
        :param backplane_client_keyfile: PEM file with its key; None: it is in `backplane_client_certfile`.
        :param backplane_credentials: for NATS, a file with a user's JWT and key (".creds").

        Raises OSError, naming host and port, when the address is in use or not permitted; TypeError for none or both of
        `port` and `sockets`; RuntimeError when the server runs already; ValueError for a setting out of range, or a
        certificate, key or URL that will not do. Runs `on_init` the first time.
        """
        settings = {
            "max_message_size": max_message_size,
            "max_frame_size": max_frame_size,
            "max_fragments": max_fragments,
            "max_buffered": max_buffered,
            "max_pending_bytes": max_pending_bytes,
            "max_channel_pending_bytes": max_channel_pending_bytes,
            "max_header_size": max_header_size,
            "max_body_size": max_body_size,
            "max_form_parts": max_form_parts,
            "max_form_field_size": max_form_field_size,
            "max_upload_size": max_upload_size,
            "upload_threshold": upload_threshold,
            "upload_dir": upload_dir,
            "header_timeout": header_timeout,
            "body_timeout": body_timeout,
            "handler_timeout": handler_timeout,
            "send_timeout": send_timeout,
            "close_timeout": close_timeout,
            "handshake_timeout": handshake_timeout,
            "upgrade_timeout": upgrade_timeout,
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "idle_timeout": idle_timeout,
            "app_stall_timeout": app_stall_timeout,
            "slow_policy": slow_policy,
            "compression": compression,
            "compression_window_bits": compression_window_bits,
            "max_connections": max_connections,
            "max_connections_per_address": max_connections_per_address,
            "max_concurrent_streams": max_concurrent_streams,
            "max_headers": max_headers,
            "max_upgrades_per_second": max_upgrades_per_second,
            "allowed_origins": allowed_origins if allowed_origins in (None, "*") else _names(allowed_origins),
            "max_topic_length": max_topic_length,
            "max_subscriptions_per_channel": max_subscriptions_per_channel,
            "max_topics": max_topics,
            "max_history_bytes": max_history_bytes,
            "trusted_proxies": _names(trusted_proxies),
            "ask_upgrade": self._overrides("on_ws_upgrade"),
            "tell_drain": self._overrides("on_ws_drain"),
        }
        joins = {
            "url": backplane,
            "prefix": backplane_prefix,
            "buffer": backplane_buffer,
            "overflow": backplane_overflow,
            "history": backplane_history,
            "timeout": backplane_timeout,
            "ca_file": backplane_ca_file,
            "fingerprint": backplane_fingerprint,
            "client_certfile": backplane_client_certfile,
            "client_keyfile": backplane_client_keyfile,
            "credentials": backplane_credentials,
        }
        if latest is not None and not callable(latest):
            raise TypeError(f"latest={latest!r}: a function, or None")
        place = _place("port", port, sockets, reuse_port)
        if place is None:
            raise TypeError("start() needs a port, or sockets=")
        tls_place, tls = _place("tls_port", tls_port, tls_sockets, reuse_port), None
        if tls_place is not None:
            if certfile is None:
                given = "tls_sockets" if tls_port is None else f"tls_port={tls_port}"
                raise ValueError(f"{given} needs certfile= (`pyhv dev-cert` makes one for development)")
            tls = (tls_place, certfile, certfile if keyfile is None else keyfile)
        elif certfile is not None or keyfile is not None:
            raise ValueError("certfile= and keyfile= need tls_port=, the port for https and wss")
        if not self._initialized and not self.is_running:
            self._initialized = True
            try:
                self.on_init()
            except BaseException:
                self._initialized = False
                raise
        settings["subprotocols"] = self._subprotocols(_names(subprotocols))  # on_init may have enabled topics
        self._start(host, place, tls, reuse_port, settings, joins)
        self._set_latest(latest)

    def run(
        self,
        port: int | None = None,
        host: str = "127.0.0.1",
        *,
        interval: float | None = None,
        stop_timeout: float = 5.0,
        **settings: Any,
    ) -> None:
        """Starts, ticks until Ctrl-C, SIGTERM or `stop()`, and stops gracefully.

        :param interval: longest time between two ticks, in seconds, for a server with an `on_tick`; None ticks only
            when something has happened.
        :param stop_timeout: what `stop` gets.
        :param settings: as `start` takes them.

        Blocks, and runs every callback on the calling thread.
        """
        self.start(port, host, **settings)
        try:
            with _sigterm_as_interrupt():
                while self.is_running:
                    self.tick(interval)
        except KeyboardInterrupt:
            pass
        finally:
            self.stop(stop_timeout)

    def __enter__(self: _S) -> _S:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()

    def _overrides(self, name: str) -> bool:
        """Whether the program has a callback of its own: without one the native side need not ask or tell."""
        return name in self.__dict__ or getattr(type(self), name) is not getattr(HvWebServer, name)

    # Called by the native tick

    def _on_upgrade(self, request: HttpRequest) -> None:
        upgrade = WsUpgrade(request)
        upgrade._finish(self.on_ws_upgrade(upgrade))

    def _on_access(
        self,
        client_address: str,
        method: str,
        url: str,
        http_version: str,
        status: int,
        size: int,
        started: float,
        duration: float,
        referer: str | None,
        user_agent: str | None,
    ) -> None:
        if not _access_log.isEnabledFor(logging.INFO):
            return
        combined = self._access_format == "combined"
        fields = {
            "client_address": client_address,
            "method": method,
            "url": url,
            "http_version": http_version,
            "status": status,
            "size": size,
            "started": started,
            "duration": duration,
            "referer": referer if combined else None,
            "user_agent": user_agent if combined else None,
        }
        _access_log.info("%s", _access_line(fields, combined), extra=fields)


def _place(
    name: str, port: int | None, sockets: Iterable[socket.socket | int] | None, reuse_port: bool
) -> int | list[int] | None:
    """A port, or the descriptors of sockets."""
    if sockets is None:
        return port
    plural = "sockets" if name == "port" else "tls_sockets"
    if port is not None:
        raise TypeError(f"{plural}= stands instead of {name}={port}")
    if reuse_port:
        raise ValueError(f"reuse_port=True is for a port: with {plural}= whoever binds them decides")
    if isinstance(sockets, (socket.socket, int)):
        raise TypeError(f"{plural}={sockets!r} is not a list")
    numbers = [each if isinstance(each, int) else each.fileno() for each in sockets]
    if not numbers:
        raise ValueError(f"{plural} is empty")
    return numbers


def _names(names: Iterable[str] | None) -> list[str] | str:
    """A list, except that one str, which would be taken for its letters, is left for the error that names it."""
    return names if isinstance(names, str) else list(names or ())


def _access_line(fields: dict[str, Any], combined: bool) -> str:
    """A line of the Common Log Format, or of the Combined one."""
    then = time.localtime(fields["started"])
    offset = then.tm_gmtoff // 60
    zone = f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}{abs(offset) % 60:02}"
    stamp = f"{then.tm_mday:02}/{_MONTHS[then.tm_mon - 1]}/{then.tm_year}:{time.strftime('%H:%M:%S', then)} {zone}"
    # As Apache and nginx write it.
    version = "2.0" if fields["http_version"] == "2" else fields["http_version"]
    request = f"{fields['method']} {fields['url']} HTTP/{version}"
    line = f'{fields["client_address"]} - - [{stamp}] "{request}" {fields["status"]} {fields["size"] or "-"}'
    if combined:
        line += f' "{fields["referer"] or "-"}" "{fields["user_agent"] or "-"}"'
    return line


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """While it lasts, SIGTERM ends a wait as Ctrl-C does: service managers and containers send it to stop a program.

    Only where nobody else handles it, and only on the main thread, where Python allows it.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
