"""A real server on a free port of loopback, ticked by the test: for what a World has not."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pyhv.client import HvWebSocketClient
from pyhv.http_client import HttpClient
from pyhv.response import Response
from pyhv.server import HvWebServer
from pyhv.testing._http import Requests, result_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyhv._request import RequestOptions

__all__ = ["LiveServer"]

_T = TypeVar("_T")
_S = TypeVar("_S", bound=HvWebServer)
_C = TypeVar("_C", bound=HvWebSocketClient)
_L = TypeVar("_L", bound="LiveServer[Any]")

_HOST = "127.0.0.1"
_PAUSE = 0.001  # seconds for which the server waits in a tick


class LiveServer(Requests, Generic[_S]):
    """A server that listens on a free port of loopback, and is ticked while the test waits for something.

    ::

        with LiveServer(Game()) as live:
            assert live.get("/scores").json() == []
            player = live.connect(Player(), "/play")
            live.until(lambda: player.welcomed)

    Its sockets, threads and time are real. Callbacks run on the thread that calls.

    :param server: one that has not been started.
    :param settings: as `HvWebServer.start` takes them.
    """

    def __init__(self, server: _S, **settings: Any) -> None:
        self.server = server
        self._clients: list[HvWebSocketClient] = []
        self._http = HttpClient(proxy=False)
        try:
            server.start(0, _HOST, **settings)
        except BaseException:
            self._http.close()
            raise

    @property
    def url(self) -> str:
        """Where it is: "http://127.0.0.1:port"."""
        return f"http://{_HOST}:{self.server.port}"

    def request(self, method: str, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Makes a request and ticks until the response has come.

        :param path: path and query.
        :param options: as `pyhv.request` takes them; cookies are kept from one request to the next.

        Returns the Response, whatever its status. Raises ConnectError or HttpError.
        """
        call = self._http.request(method, self.url + path, on_error=lambda _error: None, **options)
        while not call.is_done:
            self.tick(_PAUSE)
        return result_of(call)

    def connect(self, client: _C, path: str = "/", **options: Any) -> _C:
        """Connects a client, and ticks until it is open; returns it. From here on it is ticked with the server.

        :param options: as `HvWebSocketClient.connect` takes them.

        Raises the ConnectError when there is no connection.
        """
        client.connect(f"ws://{_HOST}:{self.server.port}{path}", **options)
        self._clients.append(client)
        while client.is_connecting:
            self.tick(_PAUSE)
        if client.error is not None:
            raise client.error
        return client

    def tick(self, timeout: float | None = 0.0) -> int:
        """Ticks the server, which may wait for `timeout` seconds, and every client; how many events ran."""
        return self.server.tick(timeout) + self._http.tick() + sum(client.tick() for client in self._clients)

    def until(self, condition: Callable[[], _T], limit: float = 10.0) -> _T:
        """Ticks until `condition()` is true; returns its value. Raises AssertionError after `limit` seconds."""
        end = time.monotonic() + limit
        while not (value := condition()):
            if time.monotonic() >= end:
                raise AssertionError(f"not within {limit:g} s: {described(condition)}")
            self.tick(_PAUSE)
        return value

    def stop(self) -> None:
        """Stops the server, and ticks the clients until they have heard of it. Done by leaving the context."""
        for client in self._clients:
            client.close()
        # Ours close already: nobody else's answer is waited for.
        self.server.stop(timeout=1.0)
        self._http.close()
        end = time.monotonic() + 1.0
        for client in self._clients:
            while client.close_code is None and not client.is_connecting and time.monotonic() < end:
                client.tick(_PAUSE)

    def __enter__(self: _L) -> _L:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def described(condition: Callable[[], object]) -> str:
    """Where a condition stands, for an error."""
    code = getattr(condition, "__code__", None)
    return f"the condition at {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
