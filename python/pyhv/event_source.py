"""Server-sent events: a client that connects again, with every callback on the thread that ticks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from pyhv import _native
from pyhv._reporting import Reporting
from pyhv._request import ClientOptions, HeaderPairs, Pairs, client_options, request_options
from pyhv.errors import PyHVError
from pyhv.response import ServerSentEvent

if TYPE_CHECKING:
    from typing_extensions import Buffer, Unpack

__all__ = ["EventSource"]

_E = TypeVar("_E", bound="EventSource")

#: Set as the standard has it (HTML Living Standard, section 9.2.2).
_HEADERS = {"accept": "text/event-stream", "cache-control": "no-store"}


class EventSource(Reporting, _native.HttpClient):
    """A stream of server-sent events that connects again when it is lost, as a browser's EventSource does.

    Subclass it and override what you need, or assign::

        source = EventSource("https://example.com/events")
        source.on_message = lambda event: print(event.event, event.data)
        while playing:
            source.tick()
            ...
        source.close()

    Events of every type come to `on_message`; `event.event` is the type.

    A response with another status than 200, or another content type than text/event-stream, ends it for good: 204 is
    how a server says that there are no more events. So do an event beyond `max_event_size` and too many redirects.
    After anything else it connects again, with the last event ID.
    """

    _pyhv_log = logging.getLogger("pyhv.event_source")

    #: A value of `ready_state`, as in browsers: not connected, but it will be.
    CONNECTING = 0
    #: A value of `ready_state`: connected.
    OPEN = 1
    #: A value of `ready_state`: ended for good.
    CLOSED = 2

    def __init__(
        self,
        url: str,
        *,
        headers: HeaderPairs | None = None,
        last_event_id: str = "",
        method: str = "GET",
        params: Pairs | None = None,
        json: Any = None,
        data: str | Buffer | None = None,
        form: Pairs | None = None,
        cookies: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        bearer: str | None = None,
        timeout: float | None = 30.0,
        redirects: bool | int = True,
        reconnect_delay: float = 3.0,
        max_delay: float = 60.0,
        max_event_size: int = 1 << 20,
        max_pending_bytes: int = 16 << 20,
        **options: Unpack[ClientOptions],
    ) -> None:
        """Begins to connect; callbacks run in later ticks. Times are in seconds, sizes in bytes.

        :param url: of the stream, `http://` or `https://`.
        :param last_event_id: where to go on: the `id` of the last event that is known.
        :param timeout: for each connection, from its beginning to the head of the response; None: no limit.
        :param reconnect_delay: pause before connecting again, until the server names another (`retry:`). After each
            further failure in a row it is doubled; after a failure a random part of up to a half is left out.
        :param max_delay: the longest pause, whatever the server says.
        :param max_event_size: a larger event ends the stream for good.
        :param max_pending_bytes: when events of this much wait for a tick, reading pauses until the next.
        :param options: `connect_timeout`, `decompress`, `http2`, `proxy`, `ca_file`, `fingerprint`, `client_certfile`,
            `client_keyfile` and `dangerous_accept_any_certificate`, as in `pyhv.request`, as are `headers`, `method`,
            `params`, `json`, `data`, `form`, `cookies`, `auth`, `bearer` and `redirects`.

        Raises ValueError, TypeError or OSError for bad arguments. Any thread; never blocks.
        """
        super().__init__()
        if not isinstance(last_event_id, str):
            raise TypeError(f"last_event_id={last_event_id!r} is not a str")
        if any(ord(c) < 0x20 or ord(c) == 0x7F for c in last_event_id):
            raise ValueError(f"last_event_id={last_event_id!r} has control characters, which cannot be sent")
        native = client_options(url=url if isinstance(url, str) else None, keep_cookies=True, **options)
        asked = request_options(
            method,
            url,
            headers=headers,
            params=params,
            json=json,
            data=data,
            form=form,
            cookies=cookies,
            auth=auth,
            bearer=bearer,
            timeout=timeout,
            redirects=redirects,
        )
        names = {name.lower() for name, _ in asked["headers"]}
        if "last-event-id" in names:
            raise ValueError("headers: Last-Event-ID is set by last_event_id=")
        asked["headers"] += [(name, value) for name, value in _HEADERS.items() if name not in names]
        asked.update(
            deliver="source",
            last_event_id=last_event_id,
            reconnect_delay=reconnect_delay,
            max_delay=max_delay,
            max_event_size=max_event_size,
        )
        self._url = url
        self._state = self.CONNECTING
        self._last_event_id = last_event_id
        self._error: PyHVError | None = None
        self._open({**native, "max_pending_bytes": max_pending_bytes})
        self._start(0, asked)

    # What a program overrides or assigns. All of it runs inside tick(), on that thread.

    def on_open(self) -> None:
        """It is connected, for the first time or again."""

    def on_message(self, event: ServerSentEvent) -> None:
        """An event arrived."""

    def on_error(self, exc: Exception) -> None:
        """The connection was lost or not made, with `exc`, a ConnectError or HttpError: it connects again if
        `ready_state` is CONNECTING, and has ended for good if it is CLOSED. Or a callback raised `exc`, which has been
        logged; the stream goes on."""

    @property
    def url(self) -> str:
        """The URL that was given."""
        return self._url

    @property
    def ready_state(self) -> int:
        """`CONNECTING` (0), `OPEN` (1) or `CLOSED` (2), as of the callbacks that have run."""
        return self.CLOSED if self.is_closed else self._state

    @property
    def last_event_id(self) -> str:
        """The `id` of the last event that was delivered."""
        return self._last_event_id

    @property
    def error(self) -> PyHVError | None:
        """Why it was lost the last time; None since it is open."""
        return self._error

    def __enter__(self: _E) -> _E:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """As `close`."""
        self.close()

    # Called by the native tick

    def _deliver(self, number: int, kind: str, value: Any) -> None:
        if kind == "event":
            event, data, self._last_event_id = value
            self._call("on_message", ServerSentEvent(data, event, self._last_event_id))
        elif kind == "open":
            self._state, self._error = self.OPEN, None
            self._call("on_open")
        else:
            self._state = self.CONNECTING if kind == "lost" else self.CLOSED
            self._error = value
            self._call("on_error", value)

    def _call(self, callback: str, *arguments: Any) -> None:
        try:
            getattr(self, callback)(*arguments)
        except Exception as exc:
            self._callback_failed(callback, exc)
