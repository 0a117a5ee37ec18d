"""The in-memory stand-in for `pyhv.WebSocketChannel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pyhv import WebSocketChannel
from pyhv.http import Headers, QueryParams
from pyhv.testing._wire import BINARY, TEXT, check_close, check_message, check_opcode
from pyhv.testing.clock import SECOND

if TYPE_CHECKING:
    from pyhv.testing._connection import Connection
    from pyhv.testing._topics import Topics


def send(conn: Connection, msg: Any, opcode: Any, fin: Any) -> bool:
    """What `channel.send` and `client.send` share."""
    number = check_opcode(opcode, fin)
    payload = check_message(msg)
    conn.endpoint.network.check_thread()
    return conn.send(number, TEXT if isinstance(msg, str) else BINARY, fin, payload)


class MemoryChannel:
    """A server's end of a connection in a World: every member of `pyhv.WebSocketChannel`, with the same meaning.

    `isinstance(channel, pyhv.WebSocketChannel)` holds. `is_compressed` is always False.
    """

    __slots__ = ("__weakref__", "_conn", "_ended", "_headers", "_query", "_skipped", "_topics", "data")

    def __init__(self, conn: Connection, topics: Topics) -> None:
        self._conn = conn
        self._topics = topics
        self._ended = False
        self._headers: Headers | None = None
        self._query: QueryParams | None = None
        self._skipped = 0
        #: What the program put here; None at first.
        self.data: Any = None

    # isinstance() asks for it: the native class cannot be subclassed.
    @property
    def __class__(self) -> Any:
        return WebSocketChannel

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError("a channel keeps its class")

    def send(self, msg: Any, opcode: Any = None, fin: bool = True) -> bool:
        """As `WebSocketChannel.send`."""
        return send(self._conn, msg, opcode, fin)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """As `WebSocketChannel.close`."""
        number = check_close(code, reason)
        self._conn.endpoint.network.check_thread()
        self._conn.close(number, reason)

    def subscribe(self, topic: str, *, after: str | None = None, member: Any = None) -> bool:
        """As `WebSocketChannel.subscribe`."""
        self._conn.endpoint.network.check_thread()
        return self._topics.subscribe(self, topic, after, member, False)

    def _ask(self, topic: str, after: str | None, member: Any) -> str | None:
        try:
            self._topics.subscribe(self, topic, after, member, True)
        except ValueError as error:
            return str(error)
        return None

    def unsubscribe(self, topic: str) -> bool:
        """As `WebSocketChannel.unsubscribe`."""
        self._conn.endpoint.network.check_thread()
        return self._topics.unsubscribe(self, topic)

    @property
    def topics(self) -> list[str]:
        """What it has subscribed to, in that order."""
        return self._topics.of(self)

    @property
    def url(self) -> str:
        """The request target of the handshake: path and query."""
        return self._conn.handshake.url

    @property
    def path(self) -> str:
        """The path of `url`, percent-decoded."""
        return unquote(self.url.partition("?")[0])

    @property
    def query(self) -> QueryParams:
        """The query parameters of `url`."""
        if self._query is None:
            self._query = QueryParams.parse(self.url.partition("?")[2])
        return self._query

    @property
    def headers(self) -> Headers:
        """The headers of the handshake request."""
        if self._headers is None:
            self._headers = Headers(self._conn.handshake.headers)
        return self._headers

    @property
    def remote_address(self) -> tuple[str, int]:
        """The peer's address, which its client has in this World alone."""
        return self._conn.handshake.remote

    @property
    def client_address(self) -> str:
        """The host of `remote_address`: there are no proxies."""
        return self._conn.handshake.remote[0]

    @property
    def scheme(self) -> str:
        """ "https" for wss, else "http"."""
        return self._conn.handshake.scheme

    @property
    def is_open(self) -> bool:
        """Whether `send` would queue a message."""
        return self._conn.is_open

    @property
    def buffered_amount(self) -> int:
        """Bytes that wait because the link takes no more."""
        return self._conn.buffered

    @property
    def dropped(self) -> int:
        """Messages that `slow_policy` dropped."""
        return self._conn.dropped

    @property
    def skipped(self) -> int:
        """Messages that gave way to a newer one of the same key; see `latest` of `start`."""
        return self._skipped

    @property
    def latency(self) -> float | None:
        """Round-trip time of the newest keep-alive ping, in the World's seconds."""
        return latency(self._conn)

    @property
    def is_compressed(self) -> bool:
        """False: nothing is compressed."""
        return False

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol agreed on, or None."""
        return self._conn.handshake.subprotocol

    @property
    def close_code(self) -> int | None:
        """How the channel ended; None before `on_ws_close`."""
        info = self._conn.close_info
        return info[0] if self._ended and info is not None else None

    @property
    def close_reason(self) -> str | None:
        """The reason that goes with `close_code`."""
        info = self._conn.close_info
        return info[1] if self._ended and info is not None else None

    def __repr__(self) -> str:
        host, port = self.remote_address
        return f"<WebSocketChannel {self.url} from {host}:{port}, {'open' if self.is_open else 'closed'}>"


def latency(conn: Connection) -> float | None:
    """The round trip of the newest ping that was answered, in seconds."""
    return None if conn.life.latency is None else conn.life.latency / SECOND
