"""HTTP for tests: the methods that make requests, and those to a server in a World."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyhv import _native
from pyhv.http_client import HttpCall, HttpClient
from pyhv.response import Response

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyhv._request import RequestOptions
    from pyhv.server import HvWebServer
    from pyhv.testing._server import ServerCore

_PAUSE = 0.001  # seconds for which the native side is waited for
#: Seconds for a request whose test says nothing else; a handler answers at once, or not at all.
_PATIENCE = 5.0


class Requests:
    """Requests that a test makes and waits for."""

    def request(self, method: str, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Makes a request and waits for the response."""
        raise NotImplementedError

    def get(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """A GET request; see `request`."""
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """A POST request; see `request`."""
        return self.request("POST", path, **options)

    def put(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """A PUT request; see `request`."""
        return self.request("PUT", path, **options)

    def patch(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """A PATCH request; see `request`."""
        return self.request("PATCH", path, **options)

    def delete(self, path: str, **options: Unpack[RequestOptions]) -> Response:
        """A DELETE request; see `request`."""
        return self.request("DELETE", path, **options)


def result_of(call: HttpCall) -> Response:
    """What a request that is done has come to."""
    if call.error is not None:
        raise call.error
    assert call.response is not None, "a request that is done has one of the two"
    return call.response


class WorldHttp(Requests):
    """Requests to a server in a World.

    The native side of the server's own object answers them, on a port of loopback that nobody else knows: it has the
    routes, and the one parser. It is ticked here alone, and without `on_tick`, which is the World's.
    """

    def __init__(self, server: HvWebServer, core: ServerCore) -> None:
        self._server = server
        self._core = core
        self._client: HttpClient | None = None

    def request(self, method: str, path: str, **options: Unpack[RequestOptions]) -> Response:
        """Makes a request and waits for the response, while the World's clock stands still.

        :param path: path and query.
        :param options: as `pyhv.request` takes them; cookies are kept from one request to the next. `timeout` is 5
            seconds, of real time, unless it says otherwise.

        Returns the Response, whatever its status. Raises HttpTimeout where the handler has deferred its answer or
        streams it without end, since nobody is ticked meanwhile: a LiveServer is for those. RuntimeError inside a
        callback of the same server, and when it does not run.
        """
        run = self._core.running
        if run is None:
            raise RuntimeError(f"this {type(self._server).__name__} does not run: start() it")
        with self._core.busy("request()"):
            if self._client is None:
                _native.Server._start(self._server, "127.0.0.1", 0, None, False, run.endpoint.settings)
                self._client = HttpClient(proxy=False)
            options.setdefault("timeout", _PATIENCE)
            if run.endpoint.draining:
                _native.Server.drain(self._server)
            port = self._native("port")
            members = self._server.__dict__
            own = {"on_tick": members["on_tick"]} if "on_tick" in members else {}
            members["on_tick"] = lambda: None
            try:
                if run.endpoint.ticks:
                    # Or it would count as starting.
                    _native.Server.tick(self._server)
                call = self._client.request(
                    method, f"http://127.0.0.1:{port}{path}", on_error=lambda _error: None, **options
                )
                while not call.is_done:
                    _native.Server.tick(self._server, _PAUSE)
                    self._client.tick()
            finally:
                call.cancel()
                del members["on_tick"]
                members.update(own)
        return result_of(call)

    def refusals(self) -> dict[str, int]:
        """What the native side has counted."""
        return {} if self._client is None else dict(self._native("refusals"))

    def close(self) -> None:
        """The server stops."""
        if self._client is not None:
            self._client.close()
            self._client = None
            _native.Server.stop(self._server, 0.0)

    def _native(self, name: str) -> Any:
        """A property of the native base, which the World's hides."""
        return getattr(_native.Server, name).__get__(self._server)
