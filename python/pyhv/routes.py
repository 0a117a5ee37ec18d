"""What a server answers with: its routes, its files, and what is done around every answer."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, overload

from pyhv import _native
from pyhv._native import HttpRequest, HttpResponse, StreamWriter

__all__ = ["Handler", "Routes", "StreamHandler"]

#: An HTTP handler: fills in the response and returns its status, or returns a body (str, bytes, dict or list).
Handler = Callable[[HttpRequest, HttpResponse], Any]

#: A handler of a stream: writes what is there, keeps the writer for later, returns None or a status that refuses.
StreamHandler = Callable[[HttpRequest, StreamWriter], Any]

_H = TypeVar("_H", bound=Handler)
_W = TypeVar("_W", bound=StreamHandler)


class Routes(_native.Server):
    """The part of HvWebServer that says what is answered. All of it may be called before and after `start`."""

    _access_format: str

    def route(self, method: str | None, path: str, handler: Handler) -> None:
        """Adds a handler for an HTTP method (None: any) and path.

        :param path: literal segments, `:name` for a parameter (`request.params["name"]`), and at the end `*name` for
            the rest, at least one character of it. Literal segments win over parameters.

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
        "websockets": n}; or 503 with status "stalled", or "stopping" on a connection that is still there. Between
        `drain()` and `stop()` the status is "draining", with 200. For a program that waits in `tick()` the age is 0.

        :param path: as for `route`.
        :param max_tick_age: seconds without a tick after which the program counts as stalled; None: never.

        Raises ValueError when the path has a route for GET already. Any thread, before or after `start`.
        """
        self._enable_health(path, False, max_tick_age, None)

    def enable_readyz(
        self, path: str = "/readyz", max_tick_age: float | None = None, max_load: float | None = None
    ) -> None:
        """Adds a route for GET that tells, natively, whether the server wants more clients: for load balancers.

        It answers as `enable_healthz` does, with 200 and status "ok", or 503 and the first of these that holds:
        "stopping", "stalled", "draining" (`drain()` was called), "starting" (there was no tick yet), "full".

        :param path: as for `route`.
        :param max_tick_age: seconds without a tick after which the program counts as stalled; None: never.
        :param max_load: the part of `max_connections` from which on the server counts as full, above 0 and at most
            1, not counting the connection that asks; None: it never does.

        Raises ValueError when the path has a route for GET already. Any thread, before or after `start`.
        """
        self._enable_health(path, True, max_tick_age, max_load)


def _list(name: str, values: Iterable[str]) -> list[str]:
    """A list of str. One str would be taken for its letters."""
    if isinstance(values, str):
        raise ValueError(f"{name}={values!r} is not a list")
    return list(values)
