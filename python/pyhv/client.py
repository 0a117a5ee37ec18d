"""The WebSocket client: every callback on the thread that ticks."""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote, urlsplit

from pyhv._reporting import Reporting
from pyhv._request import shown, tls_options
from pyhv.opcode import WsOpcode
from pyhv.reconnect import Reconnect
from pyhv.stats import ClientStats
from pyhv.topics import SUBPROTOCOL, ClientTopics

__all__ = ["HvWebSocketClient"]

_C = TypeVar("_C", bound="HvWebSocketClient")

#: Set by the opening handshake itself: a program that sends its own would break it.
_RESERVED = {
    "connection",
    "host",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "upgrade",
}


class HvWebSocketClient(Reporting, ClientTopics):
    """A WebSocket client for a program that owns its main loop.

    Subclass it and override what you need::

        class Chat(HvWebSocketClient):
            def on_open(self):
                self.send("hello")

            def on_message(self, msg):
                print(msg)

        client = Chat()
        client.connect("ws://127.0.0.1:9090/chat")
        while playing:
            client.tick()
            ...
        client.close()

    A native thread does the I/O without the GIL; `tick()` runs the callbacks on the calling thread. A client can
    connect again after `on_close`, or inside it; with `connect(url, reconnect=True)` it does so by itself.

    A subclass may have an `__init__` of its own and need not call this one.
    """

    _pyhv_log = logging.getLogger("pyhv.client")
    _close_timeout: float

    def __new__(cls: type[_C], *args: Any, **kwargs: Any) -> _C:
        self = super().__new__(cls, *args, **kwargs)
        self._close_timeout = 5.0
        self._topics, self._topics_left = {}, set()
        return self

    # What a program overrides. All of it runs inside tick(), on that thread.

    def on_open(self) -> None:
        """The connection is open."""

    def on_close(self) -> None:
        """The connection has ended, or there was none; `close_code`, `close_reason` and `error` tell more.

        With `reconnect` it runs for each connection that ends, and `is_reconnecting` tells whether another follows:
        `close()` prevents it. When none follows and this has not run since the last attempt, it runs at the end.
        """

    def on_reconnecting(self, attempt: int, delay: float) -> None:
        """The connection was lost, or an attempt failed; the next attempt is made in `delay` seconds.

        `attempt` is its number, from 1, since a connection was open for `min_uptime`. `close()` ends it, `connect()`
        takes its place.
        """

    def on_message(self, msg: str | bytes) -> None:
        """A message arrived: str if it was sent as text, bytes if binary. Fragments have been put together."""

    def on_message_frame(self, msg: str | bytes, opcode: WsOpcode) -> None:
        """A message arrived, with its opcode, `WsOpcode.TEXT` or `WsOpcode.BINARY`. Calls `on_message`."""
        self.on_message(msg)

    def on_drain(self) -> None:
        """Everything that was sent has left, after the socket had been full: time to send more."""

    def on_error(self, exc: Exception) -> None:
        """An attempt to connect failed with `exc`, a `ConnectError`, and `on_close` follows, or `on_reconnecting` if
        `is_reconnecting`; or a callback raised `exc`, which has been logged, and the connection is being closed with
        1011."""

    def connect(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        subprotocols: Iterable[str] = (),
        ca_file: str | os.PathLike[str] | None = None,
        fingerprint: str | None = None,
        client_certfile: str | os.PathLike[str] | None = None,
        client_keyfile: str | os.PathLike[str] | None = None,
        dangerous_accept_any_certificate: bool = False,
        max_message_size: int = 16 << 20,
        max_frame_size: int | None = None,
        max_fragments: int = 1 << 17,
        max_buffered: int = 16 << 20,
        max_pending_bytes: int = 64 << 20,
        max_header_size: int = 16 << 10,
        open_timeout: float = 10.0,
        close_timeout: float = 5.0,
        ping_interval: float | None = 20.0,
        ping_timeout: float | None = 20.0,
        slow_policy: Literal["close", "drop_newest", "drop_oldest"] = "close",
        compression: Literal["shared", "context"] | None = "shared",
        compression_window_bits: int = 15,
        latest: Callable[[str | bytes], Hashable | None] | None = None,
        reconnect: bool | Reconnect = False,
        topics: bool = False,
    ) -> None:
        """Begins to connect, and returns at once; `on_open`, or `on_error` and `on_close`, follow on a later tick.

        Sizes are in bytes, times in seconds.

        :param url: `ws://host[:port]/path?query`, or `wss://` for TLS; a user and password in it are sent
            as basic authentication.
        :param headers: further headers of the handshake request.
        :param subprotocols: names to offer, the preferred first; `subprotocol` tells the server's choice.
        :param ca_file: for wss, PEM file with the authorities to trust instead of the system's.
        :param fingerprint: for wss, SHA-256 of the one certificate to trust, whoever signed it: 64 hexadecimal digits
            as `openssl x509 -fingerprint -sha256` prints them.
        :param client_certfile: for wss, PEM file with a certificate to show to the server.
        :param client_keyfile: its key; None: it is in `client_certfile`.
        :param dangerous_accept_any_certificate: for wss, True trusts whoever answers. Anybody between you and the
            server can then read and change everything.
        :param max_message_size: a larger message ends the connection with 1009.
        :param max_frame_size: the same for one frame of a message; None: only the message counts.
        :param max_fragments: the same for a message of more fragments.
        :param max_buffered: when more than this waits to be sent the connection is closed with 1008.
        :param max_pending_bytes: when messages of this much wait for a tick, reading pauses until the next.
        :param max_header_size: largest head of the server's handshake response; at least 8192.
        :param open_timeout: time for resolving, connecting and the opening handshake together.
        :param close_timeout: time for the closing handshake.
        :param ping_interval: how often the server is pinged by the native side; None: never.
        :param ping_timeout: silence after a ping, after which the connection is closed with 1011; None: never.
        :param slow_policy: what happens when `max_buffered` is reached: "close" with 1008, "drop_newest" or
            "drop_oldest" messages, which `dropped` counts.
        :param compression: permessage-deflate (RFC 7692) to offer, for messages of 128 bytes and more: "shared"
            compresses each message by itself; "context" keeps a context, which makes similar messages smaller and costs
            some hundred KiB; None: off.
        :param compression_window_bits: largest window of compressor and decompressor as a power of two, 8 to 15.
        :param latest: a function of the message that gives its key, such as the name of the sensor: of the messages
            with one key that wait for the same tick only the newest comes, and `skipped` counts the others. None, as
            the default for all: the message stands alone. Runs on the ticking thread.
        :param reconnect: True connects again, with the same arguments, when the connection is lost or cannot be made,
            until `close()`; a `pyhv.Reconnect` says how. Not when the same would happen again: the server's certificate
            is not trusted, it refuses the handshake with another status than 408, 425, 429 or 5xx, or it closes with
            1000, 1008, 3000 or 3003.
        :param topics: offers "pyhv.topics.v1" behind `subprotocols`, for `subscribe` and `publish`.

        Raises ValueError for a bad URL, header, subprotocol or setting; RuntimeError when it is connected or
        connecting, unless `is_reconnecting`: then this takes the place of the next attempt. Any thread; never blocks.
        """
        secure, host, port, authority, path, user = _split(url)
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
        for name, _ in pairs:
            if name.lower() in _RESERVED:
                raise ValueError(f"headers: {name} is set by the WebSocket handshake itself")
        if user is not None and not any(name.lower() == "authorization" for name, _ in pairs):
            pairs.append(("Authorization", user))
        if isinstance(subprotocols, str):
            raise ValueError(f"subprotocols={subprotocols!r} is one str: give a list of names")
        names = list(subprotocols)
        if topics and SUBPROTOCOL not in names:
            names.append(SUBPROTOCOL)
        tls = tls_options(
            ca_file=ca_file,
            fingerprint=fingerprint,
            client_certfile=client_certfile,
            client_keyfile=client_keyfile,
            dangerous_accept_any_certificate=dangerous_accept_any_certificate,
            plain=None if secure else (shown(url), "wss://"),
        )
        if not isinstance(reconnect, (bool, Reconnect)):
            raise TypeError(f"reconnect={reconnect!r} is neither a bool nor a pyhv.Reconnect")
        if reconnect is True:
            reconnect = Reconnect()
        settings = {
            "max_message_size": max_message_size,
            "max_frame_size": max_frame_size,
            "max_fragments": max_fragments,
            "max_buffered": max_buffered,
            "max_pending_bytes": max_pending_bytes,
            # One connection: what one channel may have pending is what all may.
            "max_channel_pending_bytes": max_pending_bytes,
            "max_header_size": max_header_size,
            "open_timeout": open_timeout,
            "close_timeout": close_timeout,
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "slow_policy": slow_policy,
            "compression": compression,
            "compression_window_bits": compression_window_bits,
            "tell_drain": "on_drain" in self.__dict__ or type(self).on_drain is not HvWebSocketClient.on_drain,
        }
        if latest is not None and not callable(latest):
            raise TypeError(f"latest={latest!r}: a function, or None")
        self._connect(
            shown(url),
            host,
            port,
            authority,
            path,
            pairs,
            names,
            tls if secure else None,
            settings,
            asdict(reconnect) if reconnect else None,
        )
        self._set_latest(latest)
        self._close_timeout = close_timeout

    def stats(self) -> ClientStats:
        """What the client has counted since `connect`, and what waits in it now; zeros before.

        Any thread, also inside a callback; does not wait for a tick.
        """
        return ClientStats._of(self._stats())

    def __enter__(self: _C) -> _C:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the connection and ticks until it has ended, `close_timeout` at most."""
        self.close()
        # The native side gives up at close_timeout: a little more, to hear of it.
        end = time.monotonic() + self._close_timeout + 1.0
        while (self.is_connecting or self.close_code is None) and time.monotonic() < end:
            if self.tick(max(0.0, end - time.monotonic())) == 0 and not self._is_active():
                break

    def _is_active(self) -> bool:
        """Whether an end is still to come."""
        return self.is_connecting or (self.close_code is None and self.remote_address is not None)


def _split(url: str) -> tuple[bool, str, int, str, str, str | None]:
    """Whether a WebSocket URL is secure, and its host, port, Host header, request target and Authorization header
    (RFC 6455 section 3)."""
    if not isinstance(url, str):
        raise TypeError(f"a URL is str, not {type(url).__name__}")

    def bad(why: str) -> ValueError:
        return ValueError(f"{shown(url)!r} is not a WebSocket URL: {why}")

    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in url):
        raise bad("it has spaces or control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise bad(str(error)) from None
    if parts.scheme not in ("ws", "wss"):
        raise bad("it does not begin with ws:// or wss://")
    secure = parts.scheme == "wss"
    default = 443 if secure else 80
    if not parts.hostname:
        raise bad("it has no host")
    if "#" in url:
        raise bad("a fragment (#) must not be used, RFC 6455 section 3")
    if port == 0:
        raise bad("port 0 cannot be connected to")
    host = parts.hostname
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise bad(str(error)) from None
    authority = f"[{host}]" if ":" in host else host
    if port is not None and port != default:
        authority += f":{port}"
    try:
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        if parts.query:
            path += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    except UnicodeEncodeError as error:
        raise bad(str(error)) from None
    user = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        user = "Basic " + base64.b64encode(credentials.encode()).decode("ascii")
    return secure, host, port or default, authority, path, user
