"""The HTTP client: blocking functions, and `HttpClient` whose callbacks run on the thread that ticks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pyhv import _native
from pyhv._reporting import Reporting
from pyhv._request import (
    ClientOptions,
    Files,
    HeaderPairs,
    Pairs,
    Path,
    RequestOptions,
    client_options,
    header_pairs,
    merged_headers,
    request_options,
)
from pyhv.errors import PyHVError
from pyhv.response import Chunks, Response, ServerSentEvent

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

__all__ = [
    "HttpCall",
    "HttpClient",
    "delete",
    "get",
    "head",
    "options",
    "patch",
    "post",
    "put",
    "request",
]

_H = TypeVar("_H", bound="HttpClient")


# Blocking


def request(
    method: str,
    url: str,
    *,
    headers: HeaderPairs | None = None,
    params: Pairs | None = None,
    json: Any = None,
    data: str | Buffer | None = None,
    form: Pairs | None = None,
    files: Files | None = None,
    cookies: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
    bearer: str | None = None,
    timeout: float | None = 30.0,
    connect_timeout: float | None = 10.0,
    redirects: bool | int = True,
    on_chunk: Callable[[Any], object] | None = None,
    text_chunks: bool = False,
    max_response_size: int | None = 64 << 20,
    decompress: bool = True,
    http2: bool = True,
    proxy: str | bool | None = None,
    ca_file: Path | None = None,
    fingerprint: str | None = None,
    client_certfile: Path | None = None,
    client_keyfile: Path | None = None,
    dangerous_accept_any_certificate: bool = False,
) -> Response:
    """Makes a request and waits for the response. `get`, `post`, … take the same arguments without `method`.

    Times are in seconds, sizes in bytes. Each call connects anew; `HttpClient` keeps connections and cookies.

    :param method: "GET", or any other but CONNECT.
    :param url: `http://` or `https://`; a user and password in it are sent as basic authentication.
    :param headers: further headers, a dict or pairs.
    :param params: dict or pairs to append to the URL's query; a list as a value repeats its name.
    :param json: an object to send as JSON; None: nothing, so for `null` give data="null".
    :param data: a body: str is sent as UTF-8 text, bytes as they are; a header Content-Type says otherwise.
    :param form: dict or pairs to send as a form (`application/x-www-form-urlencoded`; with `files`, as its fields).
    :param files: files to send as `multipart/form-data`, a dict or pairs: name to a path, bytes, or a tuple
        (filename, path or bytes[, content type]). Files are read while they are sent, by a native thread.
    :param cookies: cookies to send to the URL's host, also after redirects to it.
    :param auth: user and password for basic authentication.
    :param bearer: a token for `Authorization: Bearer`.
    :param timeout: for the whole request; None: no limit.
    :param connect_timeout: for resolving, connecting and TLS; None: the system's limit.
    :param redirects: True follows 10, a number so many, False none: the redirect is the response. A body of `files` is
        not sent a second time, so 307 and 308 are then not followed. Authorization and cookies stay with their host.
    :param on_chunk: called on this thread with each piece of the body as it comes; the response then has none. Nothing
        more is read than it takes. What it raises ends the request and leaves the call.
    :param text_chunks: True gives `on_chunk` str, decoded by the charset of Content-Type, instead of bytes.
    :param max_response_size: a larger body, after decompression, raises BodyTooLarge; None: no limit. Not with
        `on_chunk`.
    :param decompress: whether to ask for gzip, Brotli and Zstandard and decompress them.
    :param http2: whether to offer HTTP/2 to https servers.
    :param proxy: URL of a proxy (http, https, socks5, socks5h); None: what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
        NO_PROXY say; False: none.
    :param ca_file: for https, PEM file with the authorities to trust instead of the system's.
    :param fingerprint: for https, SHA-256 of the one certificate to trust, whoever signed it: 64 hexadecimal digits as
        `openssl x509 -fingerprint -sha256` prints them.
    :param client_certfile: for https, PEM file with a certificate to show to the server.
    :param client_keyfile: its key; None: it is in `client_certfile`.
    :param dangerous_accept_any_certificate: for https, True trusts whoever answers. Anybody between you and the server
        can then read and change everything.

    Returns the Response, whatever its status. Raises ConnectError or HttpError, see `pyhv.errors`; ValueError and
    TypeError for bad arguments; OSError for a file that cannot be read.

    Any thread, also inside callbacks; blocks without the GIL. Ctrl-C raises KeyboardInterrupt and ends the request. A
    server of this program that the calling thread ticks cannot answer meanwhile.
    """
    client = client_options(
        url=url if isinstance(url, str) else None,
        connect_timeout=connect_timeout,
        decompress=decompress,
        http2=http2,
        proxy=proxy,
        ca_file=ca_file,
        fingerprint=fingerprint,
        client_certfile=client_certfile,
        client_keyfile=client_keyfile,
        dangerous_accept_any_certificate=dangerous_accept_any_certificate,
    )
    asked = request_options(
        method,
        url,
        headers=headers,
        params=params,
        json=json,
        data=data,
        form=form,
        files=files,
        cookies=cookies,
        auth=auth,
        bearer=bearer,
        timeout=timeout,
        redirects=redirects,
        max_response_size=max_response_size,
    )
    if on_chunk is None:
        if text_chunks:
            raise ValueError("text_chunks= needs on_chunk=")
        asked["deliver"] = "whole"
        return Response(_native.http_request(client, asked))
    asked["deliver"] = "chunks"
    chunks = Chunks(on_chunk, text_chunks)
    raw = _native.http_request(client, asked, chunks.sink)
    chunks.feed(b"", end=True)
    return Response(raw)


class BlockingOptions(RequestOptions, ClientOptions, total=False):
    """The named arguments of `pyhv.request`."""

    on_chunk: Callable[[Any], object] | None
    text_chunks: bool


def get(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a GET request; arguments, result and errors as in `request`."""
    return request("GET", url, **options)


def post(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a POST request; arguments, result and errors as in `request`."""
    return request("POST", url, **options)


def put(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a PUT request; arguments, result and errors as in `request`."""
    return request("PUT", url, **options)


def patch(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a PATCH request; arguments, result and errors as in `request`."""
    return request("PATCH", url, **options)


def delete(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a DELETE request; arguments, result and errors as in `request`."""
    return request("DELETE", url, **options)


def head(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes a HEAD request; arguments, result and errors as in `request`."""
    return request("HEAD", url, **options)


def options(url: str, **options: Unpack[BlockingOptions]) -> Response:
    """Makes an OPTIONS request; arguments, result and errors as in `request`."""
    return request("OPTIONS", url, **options)


# On the tick


OnResponse: TypeAlias = Callable[[Response], object]
OnFailure: TypeAlias = Callable[[PyHVError], object]
OnEvent: TypeAlias = Callable[[ServerSentEvent], object]


class CallOptions(RequestOptions, total=False):
    """The named arguments of `HttpClient.request`."""

    on_error: OnFailure | None
    on_chunk: Callable[[Any], object] | None
    text_chunks: bool
    on_event: OnEvent | None
    max_event_size: int


class HttpCall:
    """A request that an `HttpClient` makes."""

    __slots__ = (
        "_chunks",
        "_client",
        "_done",
        "_on_error",
        "_on_event",
        "_on_response",
        "error",
        "id",
        "method",
        "response",
        "url",
    )

    def __init__(
        self,
        client: HttpClient,
        number: int,
        method: str,
        url: str,
        on_response: OnResponse | None,
        on_error: OnFailure | None,
        chunks: Chunks | None,
        on_event: OnEvent | None,
    ) -> None:
        #: Its number, unique within the client.
        self.id = number
        #: Its method.
        self.method = method
        #: Its URL, as it was given.
        self.url = url
        #: The response, once it was delivered.
        self.response: Response | None = None
        #: Why there is none, once that was delivered.
        self.error: PyHVError | None = None
        self._client = client
        self._done = False
        self._on_response = on_response
        self._on_error = on_error
        self._chunks = chunks
        self._on_event = on_event

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be delivered: the response or the error was, or it was cancelled."""
        return self._done

    def cancel(self) -> bool:
        """Ends the request: no callback of it runs any more. False: it was over already.

        Any thread, also inside its own callbacks; never blocks.
        """
        cancelled = self._client._cancel(self.id)
        if cancelled:
            self._client._forget(self)
        return cancelled

    def __repr__(self) -> str:
        return f"<HttpCall {self.id} {self.method} {'done' if self._done else 'pending'}>"


class HttpClient(Reporting, _native.HttpClient):
    """An HTTP client for a program that owns its main loop: requests return at once, callbacks run in `tick()`.

    ::

        client = HttpClient()
        client.get("https://example.com/", lambda response: print(response.status, response.text()))
        while playing:
            client.tick()
            ...
        client.close()

    It keeps connections for later requests, and cookies. A native thread does the I/O without the GIL.
    """

    _pyhv_log = logging.getLogger("pyhv.http_client")

    def __init__(
        self,
        *,
        headers: HeaderPairs | None = None,
        auth: tuple[str, str] | None = None,
        bearer: str | None = None,
        timeout: float | None = 30.0,
        redirects: bool | int = True,
        max_response_size: int | None = 64 << 20,
        max_pending_bytes: int = 64 << 20,
        keep_cookies: bool = True,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Connects nowhere yet.

        :param headers: headers of every request; a request's own of the same name replace them.
        :param auth: as in `pyhv.request`, for every request that has none of its own, whatever its host.
        :param bearer: the same.
        :param timeout: what requests have that do not say otherwise, as in `pyhv.request`.
        :param redirects: the same.
        :param max_response_size: the same.
        :param max_pending_bytes: when so many bytes wait for a tick, reading pauses until the next.
        :param keep_cookies: whether cookies that servers set are sent with later requests.
        :param options: `connect_timeout`, `decompress`, `http2`, `proxy`, `ca_file`, `fingerprint`, `client_certfile`,
            `client_keyfile` and `dangerous_accept_any_certificate`, as in `pyhv.request`.

        Raises ValueError, TypeError or OSError for bad arguments. Any thread; never blocks.
        """
        super().__init__()
        self._headers = header_pairs(headers)
        self._base: RequestOptions = {
            "headers": self._headers,
            "auth": auth,
            "bearer": bearer,
            "timeout": timeout,
            "redirects": redirects,
            "max_response_size": max_response_size,
        }
        # Wrong ones are to raise here, not with the first request.
        request_options("GET", "", **self._base)
        self._calls: dict[int, HttpCall] = {}
        self._numbers = itertools.count(1)
        native = client_options(keep_cookies=keep_cookies, **options)
        self._open({**native, "max_pending_bytes": max_pending_bytes})

    def request(
        self,
        method: str,
        url: str,
        on_response: OnResponse | None = None,
        *,
        on_error: OnFailure | None = None,
        on_chunk: Callable[[Any], object] | None = None,
        text_chunks: bool = False,
        on_event: OnEvent | None = None,
        max_event_size: int = 1 << 20,
        **options: Unpack[RequestOptions],
    ) -> HttpCall:
        """Begins a request and returns at once; its callbacks run in later ticks.

        :param on_response: called with the Response, whatever its status, when all of it has come.
        :param on_error: called with a ConnectError or HttpError instead; without it the client's `on_error` is. Exactly
            one of the two is called, once, unless the request is cancelled.
        :param on_chunk: called with each piece of the body before that, as bytes, or as str with `text_chunks`.
        :param on_event: called with each ServerSentEvent of an event stream before that; what is no event stream
            (status 200 and text/event-stream) comes to `on_response` alone, with its body.
        :param max_event_size: a larger event ends the request with BodyTooLarge.
        :param options: `headers`, `params`, `json`, `data`, `form`, `files`, `cookies`, `auth`, `bearer`, `timeout`,
            `redirects` and `max_response_size`, as in `pyhv.request`. With `on_event`, `timeout` is for the head of the
            response: a stream goes on for as long as it likes.

        An exception in `on_chunk` or `on_event` also cancels the request.

        Returns the HttpCall, by which it can be cancelled. Raises ValueError, TypeError or OSError for bad arguments,
        RuntimeError after `close`. Any thread; never blocks.
        """
        if on_chunk is not None and on_event is not None:
            raise ValueError("on_chunk= and on_event= exclude one another")
        if text_chunks and on_chunk is None:
            raise ValueError("text_chunks= needs on_chunk=")
        merged: RequestOptions = {**self._base, **options}
        if any(options.get(name) is not None for name in ("auth", "bearer")):
            merged["auth"], merged["bearer"] = options.get("auth"), options.get("bearer")
        merged["headers"] = merged_headers(self._headers, options.get("headers"))
        if any(name.lower() == "authorization" for name, _ in header_pairs(options.get("headers"))):
            merged["auth"], merged["bearer"] = options.get("auth"), options.get("bearer")
        asked = request_options(method, url, **merged)
        asked["deliver"] = "chunks" if on_chunk else "events" if on_event else "whole"
        asked["max_event_size"] = max_event_size
        chunks = None if on_chunk is None else Chunks(on_chunk, text_chunks)
        call = HttpCall(self, next(self._numbers), method, url, on_response, on_error, chunks, on_event)
        # Before it starts: another thread may tick.
        self._calls[call.id] = call
        try:
            self._start(call.id, asked)
        except BaseException:
            del self._calls[call.id]
            raise
        return call

    def get(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a GET request; arguments, result and errors as in `request`."""
        return self.request("GET", url, on_response, **options)

    def post(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a POST request; arguments, result and errors as in `request`."""
        return self.request("POST", url, on_response, **options)

    def put(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a PUT request; arguments, result and errors as in `request`."""
        return self.request("PUT", url, on_response, **options)

    def patch(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a PATCH request; arguments, result and errors as in `request`."""
        return self.request("PATCH", url, on_response, **options)

    def delete(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a DELETE request; arguments, result and errors as in `request`."""
        return self.request("DELETE", url, on_response, **options)

    def head(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins a HEAD request; arguments, result and errors as in `request`."""
        return self.request("HEAD", url, on_response, **options)

    def options(self, url: str, on_response: OnResponse | None = None, **options: Unpack[CallOptions]) -> HttpCall:
        """Begins an OPTIONS request; arguments, result and errors as in `request`."""
        return self.request("OPTIONS", url, on_response, **options)

    def on_error(self, exc: Exception) -> None:
        """A callback raised `exc`, or a request without an `on_error` of its own failed with it; it has been logged."""

    def close(self) -> None:
        """Cancels every request, without further callbacks, and closes every connection. Closing again does nothing.

        Any thread, also inside a callback; never blocks.
        """
        super().close()
        for call in list(self._calls.values()):
            self._forget(call)

    def __enter__(self: _H) -> _H:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As `close`."""
        self.close()

    def _forget(self, call: HttpCall) -> None:
        self._calls.pop(call.id, None)
        call._done = True

    # Called by the native tick

    def _deliver(self, number: int, kind: str, value: Any) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        if kind == "done":
            self._done(call, value)
        elif kind == "failed":
            self._failed(call, value)
        else:
            self._go_on(call, kind, value)

    def _go_on(self, call: HttpCall, kind: str, value: Any) -> None:
        """Something that is not the end."""
        try:
            if kind == "event" and call._on_event is not None:
                event, data, last_id = value
                call._on_event(ServerSentEvent(data, event, last_id))
            elif call._chunks is not None:
                call._chunks.sink(kind, value)
        except Exception as exc:
            call.cancel()
            self._callback_failed("on_event" if kind == "event" else "on_chunk", exc)

    def _done(self, call: HttpCall, raw: dict[str, Any]) -> None:
        self._forget(call)
        if call._chunks is not None:
            try:
                call._chunks.feed(b"", end=True)
            except Exception as exc:
                self._callback_failed("on_chunk", exc)
                return
        call.response = Response(raw)
        if call._on_response is not None:
            try:
                call._on_response(call.response)
            except Exception as exc:
                self._callback_failed("on_response", exc)

    def _failed(self, call: HttpCall, error: PyHVError) -> None:
        self._forget(call)
        call.error = error
        if call._on_error is None:
            self._pyhv_log.warning("%s request %d failed: %s", call.method, call.id, error)
            self._tell_on_error(error)
            return
        try:
            call._on_error(error)
        except Exception as exc:
            self._callback_failed("on_error", exc)

    def _callback_failed(self, callback: str, exc: Exception) -> None:
        self._pyhv_log.error("%s of a request raised", callback, exc_info=exc)
        self._tell_on_error(exc)
