"""A model of one server and several clients, driven through random sequences of what programs and peers do.

Every send is written down; after every step what has arrived must be a beginning of that, and where a connection
lives or ends gracefully, in the end all of it. What can be seen from outside of the nine promises in docs/design.md is
checked on the way: threads, nesting, order, once only, `send` and `is_open` in agreement with the callbacks, nothing
left by `stop()`.

More of it: `PYHV_MODEL_EXAMPLES=2000 pytest tests/test_model.py`, each run with other sequences.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pyhv import HvWebServer, HvWebSocketClient, WebSocketChannel, WsOpcode
from support import (
    Background,
    RawClient,
    port_of,
    sockets_and_wakes,
    thread_names,
    tick_until,
    url_of,
    wait_until,
)

EXAMPLES = os.environ.get("PYHV_MODEL_EXAMPLES")
STEPS = int(os.environ.get("PYHV_MODEL_STEPS", "40"))

PEERS = 5  # that are alive at once
#: Bytes that a peer may have under way to a server that does not tick, so that no send of the test blocks: below
#: `max_channel_pending_bytes`.
UNDER_WAY = 400_000

Message = str | bytes


class Guard:
    """Callbacks run on the thread that made this, and never inside one another."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.inside: str | None = None
        self.faults: list[str] = []

    def enter(self, name: str) -> None:
        if threading.get_ident() != self.thread:
            self.faults.append(f"{name} ran on thread {threading.get_ident()}, not {self.thread}")
        if self.inside is not None:
            self.faults.append(f"{name} ran inside {self.inside}")
        self.inside = name

    def leave(self) -> None:
        self.inside = None

    def expect(self, condition: bool, what: str) -> None:
        if not condition:
            self.faults.append(what)

    def refuses_to_tick(self, tick: Callable[[], int]) -> None:
        try:
            tick()
        except RuntimeError:
            return
        self.faults.append("a nested tick() did not raise")


class Peer:
    """One connection, seen from both ends: what was sent and what has arrived."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.channel: WebSocketChannel | None = None
        self.server_closed = False  # on_ws_close has run
        self.up: list[Message] = []  # sent by the peer, whole messages
        self.up_arrived: list[Message] = []
        self.down: list[Message] = []  # sent by the server
        self.down_arrived: list[Message] = []
        self.down_held: list[Message] = []  # broadcasts that wait for the last fragment
        self.up_part: Message | None = None  # fragments so far
        self.down_part: Message | None = None
        self.codes: set[int | None] = set()  # that the channel's close may have
        self.alive = True  # nobody has begun to end it
        self.all_up = self.all_down = True  # what was sent must arrive: the end, if it has one, is graceful
        self.must_down: int | None = None  # how much of `down` must; None: all

    @property
    def bytes_under_way(self) -> int:
        return sum(map(len, self.up[len(self.up_arrived) :]))

    def end(self, code: int | None, *, all_up: bool, all_down: bool) -> None:
        """Somebody begins to end the connection."""
        self.codes.add(code)
        self.alive = False
        self.all_up &= all_up
        self.all_down &= all_down
        if self.must_down is None:
            self.must_down = len(self.down)

    @property
    def ended(self) -> bool:
        """Both ends have seen the end. A server may not have heard of a client that did not open."""
        return not self.alive and self.gone and (self.server_closed or (self.channel is None and not self.opened))

    @property
    def settled(self) -> bool:
        """Everything that must arrive has."""
        if self.alive:
            return self.opened and self.up_arrived == self.up and self.down_arrived == self.down
        return self.ended

    def check(self) -> None:
        assert self.up_arrived == self.up[: len(self.up_arrived)], f"{self.name}: up, out of order or not sent"
        expected = self.down if self.down_part is None else self.down + self.down_held
        assert self.down_arrived == expected[: len(self.down_arrived)], f"{self.name}: down, out of order or not sent"
        if self.ended and self.channel is not None:
            assert not self.all_up or self.up_arrived == self.up, f"{self.name}: up, lost"
            must = len(self.down) if self.must_down is None else self.must_down
            assert not self.all_down or len(self.down_arrived) >= must, f"{self.name}: down, lost"

    # What the two kinds do in their ways

    gone = False
    opened = False

    def send(self, opcode: WsOpcode, payload: Message, fin: bool) -> None:
        raise NotImplementedError

    def close(self, code: int) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        raise NotImplementedError

    def pump(self) -> None:
        """Takes what has arrived."""
        raise NotImplementedError


class Client(HvWebSocketClient):
    """Writes down into its peer."""

    def __init__(self, peer: ClientPeer, guard: Guard) -> None:
        self.peer = peer
        self.guard = guard

    def on_open(self) -> None:
        self.guard.enter(f"on_open of {self.peer.name}")
        self.guard.expect(not self.peer.opened and not self.peer.gone, f"{self.peer.name} opened again")
        self.peer.opened = True
        self.guard.leave()

    def on_message(self, msg: Message) -> None:
        self.guard.enter(f"on_message of {self.peer.name}")
        self.guard.expect(self.peer.opened and not self.peer.gone, f"{self.peer.name}: a message outside of its life")
        self.peer.down_arrived.append(msg)
        if len(self.peer.down_arrived) % 5 == 0:
            self.guard.refuses_to_tick(self.tick)
        self.guard.leave()

    def on_close(self) -> None:
        self.guard.enter(f"on_close of {self.peer.name}")
        self.guard.expect(not self.peer.gone, f"{self.peer.name} closed again")
        self.guard.expect(not self.peer.alive, f"{self.peer.name} closed with {self.close_code} for no reason")
        self.guard.expect(not self.is_connected and not self.send("late"), f"{self.peer.name} sends after its close")
        self.peer.gone = True
        self.guard.leave()

    def on_error(self, exc: Exception) -> None:
        # A connection attempt may meet a server that stops.
        self.guard.expect(not self.peer.alive, f"on_error of {self.peer.name}: {exc!r}")


class ClientPeer(Peer):
    """A pyHV client."""

    def __init__(self, name: str, url: str, guard: Guard) -> None:
        super().__init__(name)
        self.client = Client(self, guard)
        self.client.connect(url)

    def send(self, opcode: WsOpcode, payload: Message, fin: bool) -> None:
        assert self.client.send(payload, opcode, fin), f"{self.name} is open, but does not send"

    def close(self, code: int) -> None:
        # What still arrives is dropped.
        self.all_down = False
        self.client.close(code, "model")
        assert not self.client.is_connected

    def drop(self) -> None:
        """No client of pyHV can vanish: it closes, as a program that forgets it does not care how."""
        self.all_down = False
        self.client.close(1001)

    def pump(self) -> None:
        self.client.tick()


class SocketPeer(Peer):
    """A client made of a socket."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(name)
        self.raw = RawClient(port, f"/{name}")
        self.opened = True
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        self.parts: list[Message] = []
        self.said_close = False

    def send(self, opcode: WsOpcode, payload: Message, fin: bool) -> None:
        self.raw.send_frame(opcode, payload.encode() if isinstance(payload, str) else payload, fin=fin)

    def close(self, code: int) -> None:
        self.said_close = True
        self.raw.send_close(code, "model")

    def drop(self) -> None:
        self.raw.reset()
        self.gone = True

    def pump(self) -> None:
        while not self.gone and self.raw.readable():
            try:
                data = self.raw.socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            self.raw.buffer += data
            while (size := self.frame_size()) and len(self.raw.buffer) >= size:
                self.take_frame()
            if not data:
                assert not self.alive, f"{self.name}: the connection ended for no reason"
                self.raw.socket.close()
                self.gone = True

    def frame_size(self) -> int:
        """Of the frame that begins the buffer; 0 if its header is not complete."""
        buffer = self.raw.buffer
        if len(buffer) < 10 and len(buffer) < (2, 4, 10)[max(0, (buffer[1] & 127) - 125) if len(buffer) > 1 else 0]:
            return 0
        short = buffer[1] & 127 if len(buffer) > 1 else 0
        if short < 126:
            return 2 + short if len(buffer) > 1 else 0
        width = 2 if short == 126 else 8
        return 2 + width + int.from_bytes(buffer[2 : 2 + width], "big")

    def take_frame(self) -> None:
        frame = self.raw.read_frame()
        assert not frame.masked and frame.rsv == 0
        assert self.close_code is None, f"{self.name}: a frame behind the close frame"
        if frame.opcode == WsOpcode.PONG:
            self.pongs.append(frame.payload)
        elif frame.opcode == WsOpcode.CLOSE:
            assert not self.alive, f"{self.name} was closed with {frame.close_code} for no reason"
            self.close_code = frame.close_code
            if not self.said_close:
                self.said_close = True
                self.raw.send_close(frame.close_code)
        elif frame.opcode != WsOpcode.PING:
            if frame.opcode != WsOpcode.CONTINUATION:
                assert not self.parts, f"{self.name}: a message inside another"
            text = frame.opcode == WsOpcode.TEXT or any(isinstance(part, str) for part in self.parts)
            self.parts.append(frame.payload.decode() if text else frame.payload)
            if frame.fin:
                empty: Any = "" if text else b""
                self.down_arrived.append(empty.join(self.parts))
                self.parts = []


class Server(HvWebServer):
    """Writes down into the peers, which it knows by their paths; sends from within callbacks where a message asks."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.guard = model.guard
        self.open: list[WebSocketChannel] = []  # by the callbacks

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        self.guard.enter(f"on_ws_open of {url}")
        peer = self.model.by_name[url[1:]]
        self.guard.expect(peer.channel is None, f"{url} opened again")
        peer.channel = channel
        channel.data = peer
        self.open.append(channel)
        self.guard.leave()

    def on_ws_message(self, channel: WebSocketChannel, msg: Message) -> None:
        peer: Peer = channel.data
        self.guard.enter(f"on_ws_message of {peer.name}")
        self.guard.expect(channel in self.open, f"{peer.name}: a message outside of its life")
        peer.up_arrived.append(msg)
        if isinstance(msg, str) and msg.startswith("echo"):
            self.model.send_down(peer, f"back {msg}")
        elif isinstance(msg, str) and msg.startswith("shout"):
            self.model.broadcast(f"heard {msg}", peer)
        elif isinstance(msg, str) and msg.startswith("nest"):
            self.guard.refuses_to_tick(self.tick)
        self.guard.leave()

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        peer: Peer = channel.data
        self.guard.enter(f"on_ws_close of {peer.name}")
        self.guard.expect(channel in self.open and not peer.server_closed, f"{peer.name} closed again")
        said = f"{peer.name} closed with {channel.close_code}, allowed are {peer.codes}"
        self.guard.expect(channel.close_code in peer.codes, said)
        self.guard.expect(not channel.is_open and not channel.send("late"), f"{peer.name} is open after its close")
        peer.server_closed = True
        self.open.remove(channel)
        self.guard.leave()

    def on_error(self, exc: Exception) -> None:
        self.guard.faults.append(f"on_error: {exc!r}")


sizes = st.sampled_from([0, 1, 5, 125, 126, 1000, 40_000, 70_000, 150_000])
picks = st.integers(0, 1000)


class Model(RuleBasedStateMachine):
    """One server, its peers, and everything that may happen between them.

    A rule that does not apply does nothing, instead of having a precondition: what applies is also a matter of what the
    network has delivered, and hypothesis wants the same choice of rules each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guard = Guard()
        self.by_name: dict[str, Peer] = {}
        self.number = 0
        self.threads = thread_names()
        self.sockets = sockets_and_wakes()
        self.server = Server(self)

    # Facts

    @property
    def peers(self) -> list[Peer]:
        return list(self.by_name.values())

    @property
    def running(self) -> bool:
        return self.server.is_running

    @property
    def living(self) -> list[Peer]:
        """Open at both ends, as far as the callbacks have told."""
        return [peer for peer in self.peers if peer.alive and peer.opened and peer.channel is not None]

    @property
    def alive(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.alive and peer.opened]

    def message(self, size: int, binary: bool, word: str = "") -> Message:
        """Each differs from all others, unless it is empty."""
        self.number += 1
        if size == 0:
            return b"" if binary else ""
        text = f"{word}{self.number} {'é' * (size // 2)}"
        return text.encode() if binary else text

    # What happens

    @initialize()
    def start(self) -> None:
        self.server.start(0)

    @rule()
    def start_again(self) -> None:
        if self.running:
            return
        self.server.start(0)

    @rule(by_hand=st.booleans())
    def connect(self, by_hand: bool) -> None:
        if not self.running or sum(peer.alive for peer in self.peers) >= PEERS:
            return
        self.number += 1
        name = f"{'socket' if by_hand else 'client'}-{self.number}"
        if by_hand:
            self.by_name[name] = SocketPeer(name, port_of(self.server))
        else:
            self.by_name[name] = ClientPeer(name, url_of(self.server, f"/{name}"), self.guard)

    @rule(pick=picks, size=sizes, binary=st.booleans(), word=st.sampled_from(["", "", "echo ", "shout ", "nest "]))
    def send_up(self, pick: int, size: int, binary: bool, word: str) -> None:
        if not self.alive:
            return
        peer = self.alive[pick % len(self.alive)]
        if peer.up_part is not None or peer.bytes_under_way + size > UNDER_WAY:
            return
        message = self.message(size, binary, word)
        peer.send(WsOpcode.BINARY if binary else WsOpcode.TEXT, message, True)
        peer.up.append(message)

    @rule(pick=picks, size=sizes, binary=st.booleans(), last=st.booleans())
    def send_fragment_up(self, pick: int, size: int, binary: bool, last: bool) -> None:
        if not self.alive:
            return
        peer = self.alive[pick % len(self.alive)]
        if peer.bytes_under_way + len(peer.up_part or "") + size > UNDER_WAY:
            size, last = 1, True
        begins = peer.up_part is None
        part: Any = self.message(size, binary if begins else isinstance(peer.up_part, bytes))
        opcode = (WsOpcode.BINARY if binary else WsOpcode.TEXT) if begins else WsOpcode.CONTINUATION
        peer.send(opcode, part, last)
        whole: Any = part if begins else peer.up_part + part
        peer.up_part = None if last else whole
        if last:
            peer.up.append(whole)

    @rule(pick=picks, size=sizes, binary=st.booleans())
    def send_down_to_one(self, pick: int, size: int, binary: bool) -> None:
        if not self.living:
            return
        self.send_down(self.living[pick % len(self.living)], self.message(size, binary))

    def send_down(self, peer: Peer, message: Message) -> None:
        assert peer.channel is not None
        if peer.down_part is not None:
            return
        sent = peer.channel.send(message)
        self.guard.expect(sent or not peer.alive, f"{peer.name} is open, but send says no")
        if sent:
            peer.down.append(message)

    @rule(pick=picks, size=sizes, binary=st.booleans(), last=st.booleans())
    def send_fragment_down(self, pick: int, size: int, binary: bool, last: bool) -> None:
        if not self.living:
            return
        peer = self.living[pick % len(self.living)]
        assert peer.channel is not None
        begins = peer.down_part is None
        part: Any = self.message(size, binary if begins else isinstance(peer.down_part, bytes))
        opcode = (WsOpcode.BINARY if binary else WsOpcode.TEXT) if begins else WsOpcode.CONTINUATION
        assert peer.channel.send(part, opcode, last), f"{peer.name} is open, but send says no"
        whole: Any = part if begins else peer.down_part + part
        peer.down_part = None if last else whole
        if last:
            peer.down += [whole, *peer.down_held]
            peer.down_held = []

    @rule(pick=picks, size=sizes, binary=st.booleans(), exclude=st.booleans())
    def broadcast_to_all(self, pick: int, size: int, binary: bool, exclude: bool) -> None:
        if not self.running:
            return
        excluded = self.living[pick % len(self.living)] if exclude and self.living else None
        self.broadcast(self.message(size, binary), excluded)

    def broadcast(self, message: Message, excluded: Peer | None) -> None:
        """It goes to those whose `on_ws_open` has run and that are open, but for `excluded`."""
        for channel in self.server.open:
            peer: Peer = channel.data
            if peer is not excluded and channel.is_open:
                (peer.down if peer.down_part is None else peer.down_held).append(message)
        self.server.broadcast(message, None if excluded is None else excluded.channel)

    @rule(pick=picks, code=st.sampled_from([1000, 1001, 3000, 4999]))
    def close_by_server(self, pick: int, code: int) -> None:
        if not self.living:
            return
        peer = self.living[pick % len(self.living)]
        assert peer.channel is not None
        # Messages that are under way may be dropped; everything that was sent leaves before the close frame.
        peer.end(code, all_up=False, all_down=True)
        peer.channel.close(code, "model")
        assert not peer.channel.is_open and not peer.channel.send("late")
        peer.channel.close(1000)  # again does nothing

    @rule(pick=picks, code=st.sampled_from([1000, 1001, 3000, 4999]))
    def close_by_peer(self, pick: int, code: int) -> None:
        if not self.alive:
            return
        peer = self.alive[pick % len(self.alive)]
        # Its messages come before its close.
        peer.end(code, all_up=True, all_down=True)
        peer.close(code)

    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        if not self.alive:
            return
        peer = self.alive[pick % len(self.alive)]
        peer.end(1006, all_up=False, all_down=False)
        peer.codes.add(1001)
        peer.drop()

    @rule()
    def tick(self) -> None:
        if self.running:
            self.server.tick()
        for peer in self.peers:
            peer.pump()

    @rule()
    def tick_the_server(self) -> None:
        """The clients stall."""
        if self.running:
            self.server.tick(0.001)

    @rule()
    def stall(self) -> None:
        """The server's program does not tick; its native thread answers all the same."""
        if not self.running:
            return
        for peer in self.living:
            if isinstance(peer, SocketPeer):
                self.number += 1
                ping = str(self.number).encode()
                peer.raw.send_ping(ping)
                # Not behind messages that wait for a tick, if so many wait that reading pauses.
                wait_until(lambda peer=peer, ping=ping: (peer.pump(), ping in peer.pongs)[1], what="the pong")  # type: ignore[misc]

    @rule()
    def settle(self) -> None:
        """Everybody ticks until everything that must arrive has."""
        for peer in self.living:
            # What waits for the last fragment would wait on.
            if peer.down_part is not None:
                assert peer.channel is not None
                assert peer.channel.send(b"" if isinstance(peer.down_part, bytes) else "", WsOpcode.CONTINUATION)
                peer.down += [peer.down_part, *peer.down_held]
                peer.down_part, peer.down_held = None, []
        try:
            tick_until(lambda: (self.tick(), all(peer.settled for peer in self.peers))[1], what="all has arrived")
        except AssertionError:
            waiting = [f"{peer.name} {vars(peer)!r:.2000}" for peer in self.peers if not peer.settled]
            raise AssertionError("\n".join(["not all has arrived:", *self.guard.faults, *waiting])) from None

    @rule(gracefully=st.booleans())
    def stop(self, gracefully: bool) -> None:
        if not self.running:
            return
        if gracefully:
            self.settle()
        for peer in self.peers:
            if not peer.ended:
                peer.end(1001, all_up=gracefully, all_down=gracefully)
                if not gracefully:
                    peer.codes.add(1006)
        if gracefully:
            # The sockets answer from another thread, as their peers would; pyHV's clients do without a tick.
            sockets = [peer for peer in self.peers if isinstance(peer, SocketPeer)]

            def all_gone() -> bool:
                for peer in sockets:
                    peer.pump()
                return all(peer.gone for peer in sockets)

            answering = Background(lambda: wait_until(all_gone, what="the sockets have their end"))
            self.server.stop(10.0)
            answering.result()
            for peer in sockets:
                assert peer.close_code is not None or peer.codes & {1006}, f"{peer.name} was not told"
        else:
            self.server.stop(0)
        assert not self.running and self.server.channels == [] and self.server.open == []
        tick_until(lambda: (self.tick(), all(peer.ended for peer in self.peers))[1], what="all peers have ended")

    # What holds after each step

    @invariant()
    def holds(self) -> None:
        assert not self.guard.faults, self.guard.faults
        assert set(self.server.channels) == set(self.server.open)
        for peer in self.peers:
            peer.check()
            if peer.channel is not None and peer.alive:
                assert peer.channel.is_open
            if peer.server_closed:
                assert peer.channel is not None
                assert not peer.channel.is_open and not peer.channel.send("late")
        # Those that are through are checked for the last time.
        self.by_name = {peer.name: peer for peer in self.peers if not peer.ended}

    def teardown(self) -> None:
        # What comes after a failure hides it.
        failed = sys.exc_info()[0] is not None
        try:
            if self.running and not failed:
                self.settle()
                self.stop(gracefully=True)
            if not failed:
                self.holds()
                assert not self.by_name, f"not ended: {list(self.by_name)}"
        finally:
            if self.running:
                self.server.stop(0)
            for peer in self.peers:
                if isinstance(peer, SocketPeer):
                    peer.raw.socket.close()
        if failed:
            return
        self.by_name = {}
        del self.server
        gc.collect()
        wait_until(lambda: len(thread_names()) <= len(self.threads), what="the threads are as before")
        wait_until(lambda: sockets_and_wakes() <= self.sockets, what="the sockets are closed")


@pytest.mark.timeout(120 if EXAMPLES is None else 36_000)
def test_random_sequences_keep_the_promises() -> None:
    with HvWebServer() as first:
        first.start(0)  # the native thread, which stays
    how = settings(
        max_examples=int(EXAMPLES or 60),
        stateful_step_count=STEPS,
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Model, settings=how)
