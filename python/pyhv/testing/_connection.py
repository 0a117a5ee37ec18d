"""One end of a WebSocket connection in a World: the rules of crates/engine/src/connection, without a socket.

The closing handshake is the table in closing.rs, state by state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from pyhv.testing import _keepalive
from pyhv.testing._inbox import Event
from pyhv.testing._keyed import Keyed
from pyhv.testing._wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, Sequence, frame_size, keyed_size
from pyhv.testing.clock import SECOND, Timer

if TYPE_CHECKING:
    from pyhv.testing._endpoint import Endpoint
    from pyhv.testing.link import Chunk, Pipe, Wire

_TOO_SLOW = "too slow: more than max_buffered bytes waited to be sent"


class State(Enum):
    """Of the closing handshake."""

    OPEN = 0
    ANSWERING = 1
    CLOSING = 2
    DRAINING = 3
    CLOSED = 4


class Shut(Enum):
    """Whether the program may send."""

    OPEN = 0
    #: The connection is gone or ending: sending is pointless.
    GONE = 1
    #: The program called close: what still arrives is dropped.
    CLOSED = 2


@dataclass(frozen=True)
class Handshake:
    """What the opening handshake told."""

    url: str
    headers: list[tuple[str, str]]
    remote: tuple[str, int]
    scheme: str
    subprotocol: str | None

    def describe(self) -> str:
        """Whose connection, for a log line."""
        return f"{self.url} from {self.remote[0]}:{self.remote[1]}"


class Connection:
    """An end of a connection: between the program, which sends and closes, and the wire."""

    def __init__(self, endpoint: Endpoint, wire: Wire, *, server: bool, handshake: Handshake) -> None:
        self.endpoint = endpoint
        self.handshake = handshake
        self.server = server
        #: Of a server, from the open event on.
        self.channel: Any = None
        self.shut = Shut.OPEN
        self.state = State.OPEN
        self.sequence = Sequence()
        self.buffered = 0
        self.dropped = 0
        self.replaced = 0
        self.close_info: tuple[int, str] | None = None
        #: The tick has delivered the open event: broadcasts are for this channel too.
        self.announced = False
        self.life = _keepalive.Life()
        self._wire = wire
        self._in: Pipe = wire.up if server else wire.down
        self._out: Pipe = wire.down if server else wire.up
        self._frames: deque[Frame] = deque()
        self._held: list[Frame] = []  # broadcasts that wait for the last fragment of a message
        self._keyed = Keyed(self)
        self._message: tuple[int, list[bytes]] | None = None  # being received: its kind and fragments
        self._message_size = 0
        self._told = False
        self._blocked = False
        self._refused = False
        self._touched = False
        self._peer_closed = False
        self._answer: tuple[int | None, str] | None = None
        self._pong: bytes | None = None
        self._timer: Timer | None = None
        self._paused = False
        self._epoch = endpoint.inbox.batch.number
        self._pending = 0
        self._in.reader = self
        self._out.on_room = self._has_room
        wire.ends.append(self)
        endpoint.connections.append(self)
        head = sum(len(name) + len(value) + 3 for name, value in handshake.headers) + len(handshake.url)
        endpoint.inbox.push(Event("open", self, size=head))
        if endpoint.stopping:
            # The stop's close-all went by before.
            self.close_now(*endpoint.parting)

    # The program's side

    @property
    def is_open(self) -> bool:
        return self.shut is Shut.OPEN

    @property
    def is_closed_by_program(self) -> bool:
        """Messages that are still queued are not for it."""
        return self.shut is Shut.CLOSED

    def send(self, opcode: int | None, kind: int, fin: bool, payload: bytes) -> bool:
        """Queues a frame. Raises ValueError for one that does not fit the sequence of fragments."""
        self.sequence.check(opcode, kind, payload)
        if not self.is_open:
            return False
        begun = self.sequence.open is not None
        opcode = self.sequence.next(opcode, kind, fin)
        control = opcode in (PING, PONG)
        policy = self.endpoint.settings["slow_policy"]
        # Only a whole message can be left out: fragments belong together.
        whole = fin and not begun and not control
        droppable = whole and policy == "drop_oldest"
        if not control and not droppable and self._is_over(len(payload)):
            self._refused = True
            if whole and policy == "drop_newest":
                self.dropped += 1
                return False
            self._overflow()
            return False
        # Behind our close frame no data may be sent (RFC 6455 section 5.5.1).
        if self.state in (State.OPEN, State.ANSWERING):
            self._append(opcode, payload, fin=fin, droppable=droppable)
            self.life.talked = True
            if droppable:
                self._make_room(0)
            if fin and opcode == CONTINUATION:
                held, self._held = self._held, []
                self._frames.extend(held)
            self._touch()
        return True

    def send_keyed(self, key: str | bytes, opcode: int | None, kind: int, payload: bytes) -> bool:
        """Queues a whole message, in the place of one with the same key."""
        named = kind if opcode is None else opcode
        self.sequence.check(named, kind, payload)
        if not self.is_open:
            return False
        self.sequence.next(named, kind, True)
        policy = self.endpoint.settings["slow_policy"]
        if policy != "drop_oldest" and self._keyed.is_over(key, payload):
            self._refused = True
            if policy == "drop_newest":
                self.dropped += 1
            else:
                self._overflow()
            return False
        if self.state in (State.OPEN, State.ANSWERING):
            self._queue_keyed(key, named, payload)
            if policy == "drop_oldest":
                self._make_room(0)
            self._touch()
        return True

    def _queue_keyed(self, key: str | bytes, opcode: int, payload: bytes) -> None:
        frame = self._keyed.put(key, opcode, payload, self.endpoint.settings["slow_policy"] == "drop_oldest")
        if frame is not None:
            (self._frames if self.sequence.open is None else self._held).append(frame)

    def broadcast(self, kind: int, payload: bytes, key: str | bytes | None = None) -> None:
        if self.announced:
            self.published(kind, payload, key)

    def published(self, kind: int, payload: bytes, key: str | bytes | None = None) -> None:
        """Queues a message that it shares with others."""
        if self.state not in (State.OPEN, State.ANSWERING):
            return
        size = frame_size(len(payload), masked=False)
        policy = self.endpoint.settings["slow_policy"]
        fragmented = self.sequence.open is not None
        if policy == "drop_oldest" and not fragmented:
            more = size if key is None else max(0, keyed_size(key, payload) - self._keyed.charged(key))
            self._make_room(more)
        if key is not None and not self._keyed.is_over(key, payload):
            self._queue_keyed(key, kind, payload)
        elif key is None and not self._is_over(size):
            frame = Frame(kind, True, payload, size, droppable=policy == "drop_oldest" and not fragmented)
            (self._held if fragmented else self._frames).append(frame)
            self.buffered += size
            self.life.talked = True
        elif policy == "close":
            self._gone()
            self._drop_slow()
        else:
            self._refused = True
            self.dropped += 1
        self._touch()

    def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake behind what has been sent."""
        was = self.shut
        self.shut = Shut.CLOSED
        if was is Shut.OPEN:
            self.close_now(code, reason)

    def close_now(self, code: int, reason: str = "") -> None:
        """The same for the endpoint, which stops: what has arrived is still delivered."""
        self._gone()
        if self.state is State.OPEN:
            self._close_frame(code, reason)
            self.state = State.CLOSING
            self._start_timer()
        elif self.state is State.ANSWERING and self._peer_closed:
            self._close_frame(code, reason)
            self._drain()
        elif self.state is State.ANSWERING:
            self._give_answer()
        else:
            return
        self._touch()

    def delivered_close(self) -> None:
        """The tick delivers the close event: nothing more is sent, and the peer is answered."""
        self._gone()
        if self.state is State.ANSWERING:
            self._give_answer()
            self._touch()

    def abort(self) -> None:
        """Ends it without a closing handshake; a close frame queued just now still leaves."""
        if not self._blocked:
            self.flush()
        self.lost()

    # The wire's side

    def may_read(self) -> bool:
        if self.state is not State.OPEN:
            return True
        if not self._paused and self.endpoint.inbox.is_full():
            self._pause()
        return not self._paused

    def resume(self) -> None:
        self._paused = False
        self._in.read()

    def received(self, chunk: Chunk) -> None:
        """A part of a frame has arrived."""
        frame = chunk.frame
        if frame is None or self.state not in (State.OPEN, State.CLOSING) or self._peer_closed:
            return
        self.life.stirred = True
        if chunk.first and frame.opcode in (TEXT, BINARY, CONTINUATION) and not self._accepts(frame):
            return
        if not chunk.last:
            return
        if frame.opcode == PING:
            if self._blocked:
                self._pong = frame.payload
            else:
                self.control(PONG, frame.payload)
                self.flush()
        elif frame.opcode == PONG:
            number = self.life.ponged(frame.payload, self.endpoint.clock.ns)
            if number is not None:
                self._keyed.answered(number)
        elif frame.opcode == CLOSE:
            self._peer_closed = True
            code = int.from_bytes(frame.payload[:2], "big") if frame.payload else None
            self._ending(1005 if code is None else code, frame.payload[2:].decode(), (code, ""))
        else:
            self._got_message(frame)

    def ended(self) -> None:
        """The peer has ended its direction; in a World it has done so with both."""
        self.lost()

    def lost(self) -> None:
        """The connection is gone."""
        if self.state is not State.CLOSED:
            self._gone()
            self._tell_close(1006, "")
            self._finish()

    def flush(self) -> None:
        """Writes until nothing is left or the link takes no more."""
        self._touched = False
        if self.state is State.CLOSED:
            return
        while self._frames:
            frame = self._frames[0]
            if frame.key is not None and self._out.room() > 0:
                if not self._keyed.admit(self._frames):
                    self._wait_for_pong()
                    return
                continue
            if frame.key is not None:
                self._blocked = True
                return
            written = self._out.write(frame)
            if written == 0:
                self._blocked = True
                return
            self.buffered -= written
            self.life.stirred |= self._blocked
            if frame.written == frame.size:
                self._frames.popleft()
        was_blocked, self._blocked = self._blocked, False
        refused, self._refused = self._refused, False
        wanted = self.endpoint.settings["tell_drain"] and self.state is State.OPEN and self.announced
        if (was_blocked or refused) and wanted:
            self.endpoint.inbox.push(Event("drain", self))
        if self._pong is not None and self.state in (State.OPEN, State.ANSWERING):
            pong, self._pong = self._pong, None
            self.control(PONG, pong)
            self.flush()
        elif self.state is State.DRAINING and self.server:
            # RFC 6455 section 7.1.1: the server closes first. A client that broke a rule has not: half-closed, we read
            # on until it has gone.
            self._out.end()
            if self._peer_closed:
                self._finish()

    def ping(self, payload: bytes) -> None:
        self.control(PING, payload)
        self.go_on()

    def go_on(self) -> None:
        """Writes, unless it waits for the link."""
        if not self._blocked:
            self.flush()

    def give_up(self, code: int, reason: str) -> None:
        """Closes with a code of ours, without waiting for the program or for much from the peer."""
        self._gone()
        self._close_frame(code, reason)
        self._tell_close(code, reason)
        self._drain()
        if not self._blocked:
            self.flush()

    @property
    def is_established(self) -> bool:
        """Whether neither side has begun to close."""
        return self.state is State.OPEN

    @property
    def is_paused(self) -> bool:
        return self._paused

    # Inside

    def _gone(self) -> None:
        if self.shut is Shut.OPEN:
            self.shut = Shut.GONE

    def _has_room(self) -> None:
        if self._blocked:
            self.flush()

    def _touch(self) -> None:
        if not self._touched:
            self._touched = True
            self.endpoint.cork.touch(self)

    def _append(self, opcode: int, payload: bytes, *, fin: bool = True, droppable: bool = False) -> None:
        frame = Frame(opcode, fin, payload, frame_size(len(payload), masked=not self.server), droppable)
        self._frames.append(frame)
        self.buffered += frame.size

    def _wait_for_pong(self) -> None:
        """Only messages are left that wait for the peer to have read what is before them."""
        if self._blocked:
            self._blocked = False
            self.life.stirred = True
            # The program hears of it when all has left.
            self._refused = True
        if self._pong is not None and self.state in (State.OPEN, State.ANSWERING):
            pong, self._pong = self._pong, None
            self.control(PONG, pong)
            self.flush()

    def _forget(self, frame: Frame) -> None:
        """It is thrown away."""
        self.buffered -= frame.size - frame.written
        self._keyed.forget(frame)

    def control(self, opcode: int, payload: bytes) -> None:
        """Pings and pongs need not wait for messages that wait for a pong."""
        self._append(opcode, payload)
        places = (place for place, frame in enumerate(self._frames) if frame.key is not None)
        place = next(places, None)
        if place is not None:
            self._frames.insert(place, self._frames.pop())

    def _is_over(self, more: int) -> bool:
        # One message of any size may wait: the program chose it.
        return self.buffered > 0 and self.buffered + more > int(self.endpoint.settings["max_buffered"])

    def _make_room(self, more: int) -> None:
        """Drops the messages that have waited longest, but for the newest, until `more` bytes fit."""
        limit = int(self.endpoint.settings["max_buffered"])
        newest = self._frames[-1] if self._frames and not more else None
        kept: deque[Frame] = deque()
        for frame in self._frames:
            excess = self.buffered + more > limit
            if excess and frame.droppable and not frame.written and frame is not newest:
                self._forget(frame)
                self.dropped += 1
                self._refused = True
            else:
                kept.append(frame)
        self._frames = kept

    def _overflow(self) -> None:
        self.shut = Shut.GONE
        if self.state is State.OPEN:
            self._drop_slow()
        elif self.state is State.ANSWERING:
            self._give_answer()
        self._touch()

    def _drop_slow(self) -> None:
        """The peer does not read: throw away what waits, tell the program, say why if the peer ever reads."""
        waited = self.buffered
        while self._frames and not self._frames[-1].written:
            self._forget(self._frames.pop())
        limit = self.endpoint.settings["max_buffered"]
        self.endpoint.complain(
            "max_buffered",
            f"channel {self.handshake.describe()} closed with 1008: {waited} bytes waited to be sent, the limit is "
            f"max_buffered={limit}",
        )
        self._close_frame(1008, _TOO_SLOW)
        self._tell_close(1008, _TOO_SLOW)
        self._drain()

    def _close_frame(self, code: int | None, reason: str) -> None:
        payload = b"" if code is None else code.to_bytes(2, "big") + reason.encode()
        self._append(CLOSE, payload)
        # Broadcasts held back for a message that will never be finished.
        for frame in self._held:
            self._forget(frame)
        self._held = []

    def _give_answer(self) -> None:
        answer, self._answer = self._answer or (None, ""), None
        self._close_frame(*answer)
        self._drain()

    def _drain(self) -> None:
        self.state = State.DRAINING
        self._start_timer()

    def _tell_close(self, code: int, reason: str) -> None:
        if not self._told:
            self._told = True
            self.close_info = (code, reason)
            self.endpoint.inbox.push(Event("close", self))

    def _finish(self) -> None:
        self.state = State.CLOSED
        self._frames.clear()
        self._held = []
        self._keyed.clear()
        self.buffered = 0
        self._pong = None
        self._set_timer(None)
        self._out.on_room = None
        self._out.end()
        self._in.reader = None
        self._in.read()
        self.endpoint.connection_ended(self)
        if all(end.state is State.CLOSED for end in self._wire.ends):
            self._wire.over()

    def _start_timer(self) -> None:
        after = round(self.endpoint.settings["close_timeout"] * SECOND)
        self._set_timer(self.endpoint.clock.call_later(after, self._timed_out))

    def _set_timer(self, timer: Timer | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _timed_out(self) -> None:
        if self.state is State.ANSWERING:
            self._give_answer()
            self.flush()
        elif self.state in (State.CLOSING, State.DRAINING):
            self.lost()

    def _accepts(self, frame: Frame) -> bool:
        """The limits that the decoder keeps; a frame over one fails the connection (RFC 6455 section 10.4)."""
        settings = self.endpoint.settings
        fragments = 1 if self._message is None else len(self._message[1]) + 1
        self._message_size = len(frame.payload) + (0 if self._message is None else self._message_size)
        limits = (
            ("max_fragments", fragments, "the message has more fragments than this endpoint accepts"),
            ("max_frame_size", len(frame.payload), "the frame is larger than this endpoint accepts"),
            ("max_message_size", self._message_size, "the message is larger than this endpoint accepts"),
        )
        for name, value, reason in limits:
            limit = settings[name]
            if limit is not None and value > limit:
                text = f"channel {self.handshake.describe()} closed with 1009: {reason}; the limit is {name}={limit}"
                self.endpoint.complain(name, text)
                self._ending(1009, reason, (1009, reason))
                return False
        return True

    def _got_message(self, frame: Frame) -> None:
        if frame.opcode != CONTINUATION:
            self._message = (frame.opcode, [])
        assert self._message is not None, "our own ends send no fragment out of sequence"
        kind, fragments = self._message
        fragments.append(frame.payload)
        if not frame.fin:
            return
        self._message = None
        self.life.talked = True
        if self.state is not State.OPEN:
            return
        payload = b"".join(fragments)
        inbox = self.endpoint.inbox
        if self._epoch != inbox.batch.number:
            self._epoch = inbox.batch.number
            self._pending = 0
        event = Event("message", self, payload.decode() if kind == TEXT else payload, len(payload))
        self._pending += event.cost()
        inbox.push(event)
        if self._pending >= self.endpoint.settings["max_channel_pending_bytes"] or inbox.is_full():
            self._pause()

    def _pause(self) -> None:
        self._paused = True
        self.endpoint.inbox.batch.paused.append(self)

    def _ending(self, code: int, reason: str, answer: tuple[int | None, str]) -> None:
        """The peer's close frame or its violation, in its place behind the messages before it."""
        caught_up = self.endpoint.inbox.done >= self._epoch
        self._tell_close(code, reason)
        if self.state is State.CLOSING:
            # Our own close frame is out or queued: a second one is not sent.
            self._drain()
            if not self._blocked:
                self.flush()
            return
        self.state = State.ANSWERING
        self._answer = answer
        if caught_up:
            self._gone()
            self._give_answer()
            self._touch()
        else:
            self._start_timer()
