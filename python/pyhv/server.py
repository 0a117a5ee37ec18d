"""The server: HTTP and WebSocket on one port, every callback on the thread that ticks."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from pyhv import _native
from pyhv._native import HttpRequest, HttpResponse, StreamWriter, WebSocketChannel
from pyhv.http import WsUpgrade

__all__ = ["Handler", "HvWebServer", "StreamHandler"]

#: An HTTP handler: fills in the response and returns its status, or returns a body (str, bytes, dict or list).
Handler = Callable[[HttpRequest, HttpResponse], Any]

#: A handler of a stream: writes what is there, keeps the writer for later, returns None or a status that refuses.
StreamHandler = Callable[[HttpRequest, StreamWriter], Any]

_H = TypeVar("_H", bound=Handler)
_W = TypeVar("_W", bound=StreamHandler)
_S = TypeVar("_S", bound="HvWebServer")

_log = logging.getLogger("pyhv.server")
_access_log = logging.getLogger("pyhv.access")


class HvWebServer(_native.Server):
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

    _initialized: bool
    _access_format: str

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
        port: int,
        host: str = "127.0.0.1",
        *,
        tls_port: int | None = None,
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
        max_connections: int = 65_536,
        max_connections_per_address: int | None = None,
        max_concurrent_streams: int = 100,
        max_headers: int = 100,
        max_upgrades_per_second: float | None = None,
        allowed_origins: Literal["*"] | Iterable[str] | None = None,
        subprotocols: Iterable[str] = (),
        trusted_proxies: Iterable[str] = (),
    ) -> None:
        """Listens, and returns at once. Sizes are in bytes, times in seconds.

        :param port: 0 lets the system choose one; `port` tells which.
        :param host: a name or address; "0.0.0.0" is every IPv4 address of the machine.
        :param tls_port: serves https and wss there, beside http and ws on `port`, with the same handlers: TLS 1.2 and
            1.3, HTTP/2 where the client knows it. 0 lets the system choose one; the property `tls_port` tells which.
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
        :param max_form_parts: a multipart form with more fields and files is answered with 413; `form()` of an urlencoded
            one with more fields raises BadRequest.
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
            has to write one of the two, and one that writes Forwarded has to remove X-Forwarded-*, which go first.

        Raises OSError, naming host and port, when the address is in use or not permitted; RuntimeError when the
        server runs already; ValueError for a setting out of range, or a certificate or key that will not do. Runs
        `on_init` the first time.
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
            "subprotocols": _names(subprotocols),
            "trusted_proxies": _names(trusted_proxies),
            "ask_upgrade": self._overrides("on_ws_upgrade"),
            "tell_drain": self._overrides("on_ws_drain"),
        }
        tls = None
        if tls_port is not None:
            if certfile is None:
                raise ValueError(f"tls_port={tls_port} needs certfile= (`pyhv dev-cert` makes one for development)")
            tls = (tls_port, certfile, certfile if keyfile is None else keyfile)
        elif certfile is not None or keyfile is not None:
            raise ValueError("certfile= and keyfile= need tls_port=, the port for https and wss")
        if not self._initialized and not self.is_running:
            self._initialized = True
            try:
                self.on_init()
            except BaseException:
                self._initialized = False
                raise
        self._start(host, port, tls, settings)

    def run(
        self,
        port: int,
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

    # Routes

    def route(self, method: str | None, path: str, handler: Handler) -> None:
        """Adds a handler for an HTTP method (None: any) and path.

        :param path: literal segments, `:name` for a parameter (`request.params["name"]`), and at the end `*name` for
            the rest. Literal segments win over parameters.

        Raises ValueError for a malformed pattern or one that is there already. Any thread, before or after `start`.
        """
        if not callable(handler):
            raise TypeError(f"the handler of {method} {path} is not callable: {handler!r}")
        self._add_route(method, path, handler)

    @overload
    def get(self, path: str, handler: _H) -> _H: ...
    @overload
    def get(self, path: str) -> Callable[[_H], _H]: ...
    def get(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for GET, and HEAD with it; without `handler` a decorator. See `route`."""
        return self._routed("GET", path, handler)

    @overload
    def post(self, path: str, handler: _H) -> _H: ...
    @overload
    def post(self, path: str) -> Callable[[_H], _H]: ...
    def post(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for POST; without `handler` a decorator. See `route`."""
        return self._routed("POST", path, handler)

    @overload
    def put(self, path: str, handler: _H) -> _H: ...
    @overload
    def put(self, path: str) -> Callable[[_H], _H]: ...
    def put(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for PUT; without `handler` a decorator. See `route`."""
        return self._routed("PUT", path, handler)

    @overload
    def patch(self, path: str, handler: _H) -> _H: ...
    @overload
    def patch(self, path: str) -> Callable[[_H], _H]: ...
    def patch(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for PATCH; without `handler` a decorator. See `route`."""
        return self._routed("PATCH", path, handler)

    @overload
    def delete(self, path: str, handler: _H) -> _H: ...
    @overload
    def delete(self, path: str) -> Callable[[_H], _H]: ...
    def delete(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for DELETE; without `handler` a decorator. See `route`."""
        return self._routed("DELETE", path, handler)

    @overload
    def head(self, path: str, handler: _H) -> _H: ...
    @overload
    def head(self, path: str) -> Callable[[_H], _H]: ...
    def head(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for HEAD, instead of the one for GET; without `handler` a decorator. See `route`."""
        return self._routed("HEAD", path, handler)

    @overload
    def options(self, path: str, handler: _H) -> _H: ...
    @overload
    def options(self, path: str) -> Callable[[_H], _H]: ...
    def options(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for OPTIONS, instead of the built-in one; without `handler` a decorator. See `route`."""
        return self._routed("OPTIONS", path, handler)

    @overload
    def any(self, path: str, handler: _H) -> _H: ...
    @overload
    def any(self, path: str) -> Callable[[_H], _H]: ...
    def any(self, path: str, handler: _H | None = None) -> _H | Callable[[_H], _H]:
        """Adds a handler for every method that has none of its own; without `handler` a decorator. See `route`."""
        return self._routed(None, path, handler)

    @overload
    def sse(self, path: str, handler: _W, *, keep_alive: float | None = 15.0) -> _W: ...
    @overload
    def sse(self, path: str, *, keep_alive: float | None = 15.0) -> Callable[[_W], _W]: ...
    def sse(self, path: str, handler: _W | None = None, *, keep_alive: float | None = 15.0) -> _W | Callable[[_W], _W]:
        """Adds a route of server-sent events (WHATWG HTML section 9.2); without `handler` a decorator.

        `handler(request, writer)` runs in `tick()`, whatever the method. It may write events, keep the writer for
        later, and return: the stream stays open until `writer.close()`, until its client leaves (`on_stream_close`), or
        `stop()`. A status of 300 or above that it returns refuses the request instead.

        :param path: as for `route`.
        :param keep_alive: seconds without an event after which the native side sends a comment, so that proxies keep
            the connection and a client that is gone is noticed; None for none.
        """
        return self._streamed("sse", path, handler, keep_alive)

    @overload
    def stream(self, path: str, handler: _W) -> _W: ...
    @overload
    def stream(self, path: str) -> Callable[[_W], _W]: ...
    def stream(self, path: str, handler: _W | None = None) -> _W | Callable[[_W], _W]:
        """Adds a route whose content is written piece by piece; without `handler` a decorator.

        As `sse`, with `writer.write(chunk)` for any content: `writer.set_content_type(...)` inside the handler.
        """
        return self._streamed("stream", path, handler, None)

    def static(
        self,
        prefix: str,
        directory: str | os.PathLike[str],
        *,
        home_page: str | None = "index.html",
        listing: bool = False,
        error_page: str | None = None,
        cache_control: str | None = None,
        precompressed: bool = True,
        hidden: bool = False,
        follow_symlinks: bool = False,
    ) -> None:
        """Serves the files of a directory, natively: no handler runs and no tick is needed.

        Answers GET and HEAD below `prefix` where no route does, with conditional requests, ranges and entity tags. The
        longest prefix wins. Files may come, change and go at any time; nothing of them is kept in memory. Never served
        are special files, and names that mean something else on Windows (with `\\` or `:`, `nul`, `com1`, a dot or
        space at the end).

        :param prefix: a path; "/" is a document root beside which routes win.
        :param directory: its files are at `prefix/...`; a relative one is meant from the current directory of now.
        :param home_page: the file that is sent for a directory; None for none.
        :param listing: whether a directory without a home page is answered with a list of its files.
        :param error_page: path inside `directory` of the page that is sent with 404; None: a line of text.
        :param cache_control: value of the header Cache-Control of every file, "max-age=3600" say; None: browsers guess.
        :param precompressed: whether `x.br`, `x.zst` or `x.gz` is sent for `x` to clients that take it, unless it is
            older than `x`.
        :param hidden: whether names that begin with a dot are served and listed.
        :param follow_symlinks: whether symbolic links may lead out of `directory`; those inside it are always followed.

        Raises FileNotFoundError or NotADirectoryError naming `directory`, FileNotFoundError naming the error page, and
        ValueError for a prefix that is malformed or has files already. Any thread, before or after `start`.
        """
        root = os.path.abspath(directory)
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
        if error_page is not None:
            os.stat(os.path.join(root, error_page))
        self._add_static(
            prefix,
            root,
            home_page=home_page,
            listing=listing,
            error_page=error_page,
            cache_control=cache_control,
            precompressed=precompressed,
            hidden=hidden,
            follow_symlinks=follow_symlinks,
        )

    def _streamed(
        self, answer: str, path: str, handler: _W | None, keep_alive: float | None
    ) -> _W | Callable[[_W], _W]:
        if keep_alive is not None and not keep_alive > 0:
            raise ValueError(f"keep_alive={keep_alive} is not a number of seconds above 0: None is never")

        def decorate(handler: _W) -> _W:
            if not callable(handler):
                raise TypeError(f"the handler of {path} is not callable: {handler!r}")
            self._add_route(None, path, handler, answer, keep_alive)
            return handler

        return decorate if handler is None else decorate(handler)

    def _routed(self, method: str | None, path: str, handler: _H | None) -> _H | Callable[[_H], _H]:
        if handler is not None:
            self.route(method, path, handler)
            return handler

        def decorate(handler: _H) -> _H:
            self.route(method, path, handler)
            return handler

        return decorate

    # Around every answer

    def allow_cors(
        self,
        origins: Literal["*"] | Iterable[str] = "*",
        *,
        methods: Iterable[str] | None = None,
        headers: Iterable[str] | None = None,
        expose_headers: Iterable[str] = (),
        credentials: bool = False,
        max_age: float = 600.0,
    ) -> None:
        """Lets pages of other origins read what this server answers (CORS, as the WHATWG Fetch standard has it).

        For every route, error and stream. Preflight requests are answered natively, before any route for OPTIONS: with
        what is allowed, or with 403. WebSockets are not meant: `start(allowed_origins=...)` is for them.

        :param origins: "*" for all, or a list such as ["https://example.com", "http://localhost:8000"]; "null" is the
            origin of files and sandboxed frames, and everybody can have it.
        :param methods: what pages may use beside GET, HEAD and POST; None: the methods that a path has routes for.
        :param headers: request headers that pages may set; None: all.
        :param expose_headers: response headers that pages may see beside the usual ones.
        :param credentials: whether pages may send cookies and the like, and read the answer. Needs listed origins.
        :param max_age: seconds for which a browser may keep the answer to a preflight.

        A handler that sets Access-Control-Allow-Origin itself has the last word. Called again it replaces what was
        there. Raises ValueError for credentials with "*", and for what is no origin, method or header. Any thread,
        before or after `start`.
        """
        everybody = isinstance(origins, str) and origins == "*"
        self._allow_cors(
            None if everybody else _list("origins", origins),
            None if methods is None else _list("methods", methods),
            None if headers is None else _list("headers", headers),
            _list("expose_headers", expose_headers),
            credentials,
            max_age,
        )

    def compress_responses(
        self, min_size: int = 1024, codings: Iterable[str] = ("zstd", "br", "gzip"), level: int | None = None
    ) -> None:
        """Compresses the content of responses for clients that take it (RFC 9110 section 12.5.3).

        Texts, JSON and the like; not what has a Content-Encoding already, parts (206), or `Cache-Control:
        no-transform`. Responses of `sse` and `stream` routes leave as they are written. An ETag becomes a weak one.
        The native side does the work, a piece at a time.

        A response that has both a secret and what an attacker chose can leak the secret by its length (BREACH): keep
        such ones out with `Cache-Control: no-transform`.

        :param min_size: smaller contents, in bytes, are left as they are.
        :param codings: those of "zstd", "br" and "gzip" to use; of several that a client likes as much, the first.
        :param level: 1, fast, to 9, small; None: 3 of zstd, 4 of Brotli, 6 of gzip. For Brotli 9 is its level 6.

        Called again it replaces what was there. Raises ValueError for a setting out of range. Any thread, before or
        after `start`.
        """
        self._compress_responses(min_size, _list("codings", codings), level)

    def enable_access_log(self, format: Literal["common", "combined"] = "common") -> None:
        """Logs each finished request at INFO to the logger "pyhv.access", as web servers do.

        Also what the native side answers, handshakes of WebSockets (101), and streams at their end; a client that left
        before the answer counts as 499. What is no HTTP is not among them: `refusals` counts it.

        The records' attributes: client_address, method, url, http_version, status, size (bytes of content sent),
        started (seconds since 1970), duration (seconds), and for "combined" referer and user_agent, else None. Control
        characters, quotes and everything outside ASCII are escaped in line and attributes.

        :param format: the Common Log Format, or the Combined one, with referer and user agent.

        Records are logged in `tick()`. While a program does not tick they are kept up to half of `max_pending_bytes`,
        then dropped, and counted as "access_log" in `refusals`. Any thread, before or after `start`.
        """
        if format not in ("common", "combined"):
            raise ValueError(f'format={format!r} is none of "common", "combined"')
        self._access_format = format
        self._enable_access_log()

    def enable_healthz(self, path: str = "/healthz", max_tick_age: float | None = None) -> None:
        """Adds a route for GET that tells, natively, whether the server is well: for load balancers and supervisors.

        It answers 200 and JSON: {"status": "ok", "tick_age": seconds since the last tick began, "connections": n,
        "websockets": n}; or 503 with status "stalled", or "stopping" on a connection that is still there. For a program
        that waits inside `tick()` the age is 0.

        :param path: as for `route`.
        :param max_tick_age: seconds without a tick after which the program counts as stalled; None: never.

        Raises ValueError when the path has a route for GET already. Any thread, before or after `start`.
        """
        self._enable_healthz(path, max_tick_age)

    def _overrides(self, name: str) -> bool:
        """Whether the program has a callback of its own: without one the native side need not ask or tell."""
        return name in self.__dict__ or getattr(type(self), name) is not getattr(HvWebServer, name)

    # Called by the native tick

    def _on_upgrade(self, request: HttpRequest) -> None:
        upgrade = WsUpgrade(request)
        upgrade._finish(self.on_ws_upgrade(upgrade))

    def _callback_failed(self, callback: str, exc: Exception) -> None:
        _log.error("%s of %s raised", callback, type(self).__name__, exc_info=exc)
        try:
            self.on_error(exc)
        except Exception:
            _log.exception("on_error of %s raised", type(self).__name__)

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

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)


def _names(names: Iterable[str] | None) -> list[str] | str:
    """A list, except that one str, which would be taken for its letters, is left for the error that names it."""
    return names if isinstance(names, str) else list(names or ())


def _list(name: str, values: Iterable[str]) -> list[str]:
    """A list of str. One str would be taken for its letters."""
    if isinstance(values, str):
        raise ValueError(f"{name}={values!r} is not a list")
    return list(values)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # in every locale


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
