"""What servers and clients count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from pyhv import _native

__all__ = ["ClientStats", "ServerStats", "TickTimes"]

#: Who may look if nobody says otherwise: this machine.
LOOPBACK = ("127.0.0.0/8", "::1")

_T = TypeVar("_T", bound="_Stats")


@dataclass(frozen=True, kw_only=True)
class TickTimes:
    """How long ticks took that delivered something, their callbacks included, and without the time that they waited.

    :param buckets: pairs of seconds and how many ticks took at most that long, from 0.0001 to 10.
    :param count: how many ticks there were, longer ones included.
    :param sum: seconds that all of them took together.
    """

    buckets: tuple[tuple[float, int], ...] = ()
    count: int = 0
    sum: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds that a tick took on average; 0 before the first."""
        return self.sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """The bound of the bucket within which this part of all ticks were: with 0.99 that of all but one in a hundred.

        :param q: from 0 to 1.

        Returns seconds: 0 before the first tick, infinity beyond the last bound. Raises ValueError for another `q`.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q={q!r} is not a number from 0 to 1")
        if not self.count:
            return 0.0
        least = max(q * self.count, 1)
        return next((bound for bound, count in self.buckets if count >= least), float("inf"))


@dataclass(frozen=True, kw_only=True)
class _Stats:
    """What a server and a client have in common."""

    @classmethod
    def _of(cls: type[_T], values: dict[str, Any] | None) -> _T:
        """From what the native side tells; it knows more than a client has."""
        if values is None:
            return cls()
        buckets, count, total = values["tick_seconds"]
        values["tick_seconds"] = TickTimes(buckets=tuple(buckets), count=count, sum=total)
        return cls(**{f.name: values[f.name] for f in fields(cls)})

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, as a new dict for `json.dumps`; `tick_seconds` becomes one with its three fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class ServerStats(_Stats):
    """What a server has counted since `start`, and what waits in it now; see `HvWebServer.stats`.

    Numbers of bytes and of things are ints. Those that only go up say "in all"; the others are what there is now.

    :param started: when it was started, in seconds since 1970; 0: it never was.
    :param uptime: seconds since then.
    :param io_threads: native I/O threads of the process.
    :param http_connections: connections that speak HTTP, those still in their TLS handshake included.
    :param websockets: WebSockets that are open.
    :param connections_accepted: TCP connections in all.
    :param websockets_opened: WebSockets in all.
    :param websockets_closed: those that have ended, in all, by `close_code` as a str: "1000" to "1015", and "3xxx",
        "4xxx" and "other" for the codes that peers choose. Codes without any are left out.
    :param http_requests: requests in all, handshakes of WebSockets included.
    :param http_requests_active: those that are not answered yet.
    :param http_requests_abandoned: those whose client left before the answer, in all.
    :param http_responses: answers in all, by the class of their status: "1xx" (a WebSocket that was accepted) to "5xx".
        What no request could be made of is in `refusals` alone.
    :param messages_received: whole WebSocket messages in all that were put into the queue for a tick.
    :param messages_sent: whole WebSocket messages in all that were put into the send buffer of a connection: a
        broadcast to ten counts ten times. What "drop_oldest" takes out of a buffer again counts here and in
        `messages_dropped`.
    :param message_bytes_received: bytes of content of the former, after decompression.
    :param message_bytes_sent: bytes of content of the latter, before compression.
    :param messages_dropped: messages dropped in all by `slow_policy`, "drop_newest" or "drop_oldest". What "close"
        closed is "max_buffered" in `refusals`.
    :param messages_skipped: messages in all that gave way to a newer one, by `latest`.
    :param messages_replaced: messages in all that gave way to a newer one with their key before they were sent.
    :param websocket_bytes_read: bytes in all read from WebSockets, frames and all; of TLS what is in it.
    :param websocket_bytes_written: bytes in all written to them.
    :param http_bytes_read: the same of connections while they speak HTTP.
    :param http_bytes_written: the same.
    :param pings_sent: keep-alive pings in all.
    :param pings_answered: those that were answered, in all.
    :param pings_waiting: those that are not answered yet.
    :param pings_unanswered: those whose connection ended without an answer, in all. Connections closed because of it
        are "ping_timeout" in `refusals`.
    :param refusals: how often each limit was reached and each kind of fault seen, in all, by name:
        `HvWebServer.refusals`. "handler_timeout" is the handlers that did not answer in time.
    :param events_pending: events that wait for a tick. Without the batch that a tick is running.
    :param events_pending_bytes: what they count of `max_pending_bytes`.
    :param websockets_paused: WebSockets that are not read for the time being because the program does not keep up.
    :param websockets_behind: WebSockets for which something waits to be sent: more than a few for long are slow peers.
    :param buffered_bytes: bytes that wait to be sent to them, all of `buffered_amount`.
    :param commands_pending: what programs of this process have sent and the I/O threads have not looked at yet, of all
        servers and clients: calls, where those in a row for one channel are one.
    :param commands_pending_bytes: bytes of the small frames among it.
    :param ticks: calls of `tick()` in all.
    :param events_delivered: events that ticks have delivered in all.
    :param tick_seconds: how long ticks took that delivered something.
    :param tick_running: seconds for which the tick that is delivering now has been doing so; 0: none is. A callback
        that hangs shows here.
    :param stall_age: seconds since the last tick began, to some milliseconds; 0 while the program waits inside one.
        What `enable_healthz` calls tick_age.
    """

    started: float = 0.0
    uptime: float = 0.0
    io_threads: int = 0
    http_connections: int = 0
    websockets: int = 0
    connections_accepted: int = 0
    websockets_opened: int = 0
    websockets_closed: dict[str, int] = field(default_factory=dict)
    http_requests: int = 0
    http_requests_active: int = 0
    http_requests_abandoned: int = 0
    http_responses: dict[str, int] = field(default_factory=dict)
    messages_received: int = 0
    messages_sent: int = 0
    message_bytes_received: int = 0
    message_bytes_sent: int = 0
    messages_dropped: int = 0
    messages_skipped: int = 0
    messages_replaced: int = 0
    websocket_bytes_read: int = 0
    websocket_bytes_written: int = 0
    http_bytes_read: int = 0
    http_bytes_written: int = 0
    pings_sent: int = 0
    pings_answered: int = 0
    pings_waiting: int = 0
    pings_unanswered: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    events_pending: int = 0
    events_pending_bytes: int = 0
    websockets_paused: int = 0
    websockets_behind: int = 0
    buffered_bytes: int = 0
    commands_pending: int = 0
    commands_pending_bytes: int = 0
    ticks: int = 0
    events_delivered: int = 0
    tick_seconds: TickTimes = field(default_factory=TickTimes)
    tick_running: float = 0.0
    stall_age: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ClientStats(_Stats):
    """What a WebSocket client has counted since `connect`; see `HvWebSocketClient.stats`.

    Connections that were made again are counted on. The fields are those of `ServerStats`, as far as a client has them.

    :param started: when `connect` was called, in seconds since 1970; 0: it never was.
    :param uptime: seconds since then.
    :param websockets_opened: connections in all: the first, and those made again.
    :param websockets_closed: those that have ended, in all, by `close_code` as a str.
    :param messages_received: whole messages in all that were put into the queue for a tick.
    :param messages_sent: whole messages in all that were put into the send buffer.
    :param message_bytes_received: bytes of content of the former, after decompression.
    :param message_bytes_sent: bytes of content of the latter, before compression.
    :param messages_dropped: messages dropped in all by `slow_policy`.
    :param messages_skipped: messages that gave way to a newer one, by `latest`: the property `skipped`.
    :param messages_replaced: messages that gave way to a newer one with their key before they were sent.
    :param websocket_bytes_read: bytes in all, frames and all; of TLS what is in it.
    :param websocket_bytes_written: the same.
    :param pings_sent: keep-alive pings in all.
    :param pings_answered: those that were answered, in all.
    :param pings_unanswered: those whose connection ended without an answer, in all.
    :param events_pending: events that wait for a tick.
    :param events_pending_bytes: what they count of `max_pending_bytes`.
    :param buffered_bytes: bytes that wait to be sent.
    :param ticks: calls of `tick()` in all.
    :param events_delivered: events that ticks have delivered in all.
    :param tick_seconds: how long ticks took that delivered something.
    :param tick_running: seconds for which the tick that is delivering now has been doing so; 0: none is.
    :param stall_age: seconds since the last tick began; 0 while the program waits inside one.
    """

    started: float = 0.0
    uptime: float = 0.0
    websockets_opened: int = 0
    websockets_closed: dict[str, int] = field(default_factory=dict)
    messages_received: int = 0
    messages_sent: int = 0
    message_bytes_received: int = 0
    message_bytes_sent: int = 0
    messages_dropped: int = 0
    messages_skipped: int = 0
    messages_replaced: int = 0
    websocket_bytes_read: int = 0
    websocket_bytes_written: int = 0
    pings_sent: int = 0
    pings_answered: int = 0
    pings_unanswered: int = 0
    events_pending: int = 0
    events_pending_bytes: int = 0
    buffered_bytes: int = 0
    ticks: int = 0
    events_delivered: int = 0
    tick_seconds: TickTimes = field(default_factory=TickTimes)
    tick_running: float = 0.0
    stall_age: float = 0.0


class Inside(_native.Server):
    """The part of HvWebServer that lets others see inside."""

    def stats(self) -> ServerStats:
        """What the server has counted since `start`, and what waits in it now.

        After `stop()` what there was when it ended; before the first `start` zeros. The numbers are read one after the
        other while the native side goes on counting: two of them may be some messages apart.

        Any thread, also inside a callback; does not wait for a tick. It looks at every connection, which takes some
        milliseconds for fifty thousand.
        """
        return ServerStats._of(self._stats())

    def enable_metrics(self, path: str = "/metrics", *, allow: Iterable[str] = LOOPBACK) -> None:
        """Adds a route for GET that tells Prometheus what `stats` has, as text in its exposition format 0.0.4.

        The native side answers, so a program that does not tick can be looked at.

        :param path: as for `route`.
        :param allow: addresses ("10.1.2.3") and networks ("10.0.0.0/8") of those who may ask; others get 403. It is the
            address of `request.client_address` that counts, so what came through a proxy that is not in
            `trusted_proxies` gets 403 too. Who asks from this machine has to ask for an address or for localhost, and
            pages of another origin may not ask at all, whatever `allow_cors` says.

        Raises ValueError when the path has a route for GET already, and naming what is no address or network. Any
        thread, before or after `start`.
        """
        self._show_inside("metrics", path, _networks(allow))

    def enable_dashboard(self, path: str = "/_pyhv", *, allow: Iterable[str] = LOOPBACK) -> None:
        """Adds a page that draws what `stats` has, live: connections, messages, drops, queues, ticks, and stalls.

        The page is one file, needs nothing from elsewhere, and asks for `path`/stats.json four times a second. Both are
        answered natively, so it shows when the program does not tick.

        :param path: as for `route`.
        :param allow: as for `enable_metrics`; the default lets in this machine alone.

        Raises ValueError as `enable_metrics` does. Any thread, before or after `start`.
        """
        self._show_inside("dashboard", path, _networks(allow))


def _networks(allow: Iterable[str]) -> list[str]:
    """A list of str. One str would be taken for its letters."""
    if isinstance(allow, str):
        raise ValueError(f"allow={allow!r} is not a list")
    return list(allow)
