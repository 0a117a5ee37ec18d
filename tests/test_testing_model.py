"""Random programs, run in a World and over real sockets: every object must live through the same.

One side at a time acts, several times before anybody is ticked, then everything is let settle: what happens does not
depend on how the network cuts it. What the World says is what the sockets are waited for; a failure shows the step.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from pyhv import WebSocketChannel, WsOpcode
from support import RecordingClient, RecordingServer
from support_net import MemoryNet, Net, RealNet

STEPS = 25
LIMIT = 40  # of a message's size in bytes

Op = tuple[Any, ...]
State = dict[str, Any]


class Obeying(RecordingServer):
    """Does what its messages say."""

    def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
        super().on_ws_open(channel, url)
        self.keys = getattr(self, "keys", 0)
        channel.send(f"welcome {url}")
        self.broadcast(f"{url} is here", exclude=channel)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        super().on_ws_message(channel, msg)
        if isinstance(msg, bytes):
            channel.send(msg)
            return
        word, _, rest = msg.partition(" ")
        if word == "all":
            self.broadcast(rest)
        elif word == "others":
            self.broadcast(rest, exclude=channel)
        elif word == "twice":
            channel.send(rest, fin=False)
            self.broadcast("held back")
            channel.send(rest)
        elif word == "keyed":
            # Keys that come once: what is replaced depends on how the network cuts it.
            self.keys += 3
            channel.send(rest, key=f"{self.keys}")
            channel.send("behind")
            self.broadcast(f"keyed for all {rest}", key=b"%d" % self.keys)
            channel.send("one, ", fin=False)
            self.broadcast(f"keyed and held back {rest}", key=f"{self.keys + 1}", exclude=None)
            channel.send("two")
            channel.send(f"keyed last {rest}", key=f"{self.keys + 2}")
        elif word == "bye":
            channel.send("last")
            channel.close(4000, rest)
            channel.send("too late")
        elif word == "raise":
            raise LookupError(rest)

    def on_ws_close(self, channel: WebSocketChannel) -> None:
        super().on_ws_close(channel)
        self.broadcast(f"{channel.path} has left")


class Run:
    """The program over one of the nets."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.server = net.serve(Obeying(), max_message_size=LIMIT, max_fragments=3, compression=None)
        self.clients: dict[str, RecordingClient] = {}
        self.said: list[bool] = []  # what send returned

    def do(self, op: Op) -> None:
        what, *arguments = op
        getattr(self, f"do_{what}")(*arguments)

    def channel(self, name: str) -> WebSocketChannel | None:
        return next((channel for channel in self.server.channels if channel.path == f"/{name}"), None)

    def do_connect(self, name: str) -> None:
        client = self.clients[name] = RecordingClient()
        # When it stops with something undelivered: nobody ticks the clients meanwhile.
        self.net.connect(client, self.server, f"/{name}", compression=None, close_timeout=0.05)

    def do_client(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        for call in calls:
            self.call(self.clients[name], *call)

    def do_channel(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        channel = self.channel(name)
        for call in calls:
            self.call(channel, *call)

    def do_broadcast(self, msg: str, exclude: str | None) -> None:
        self.server.broadcast(msg, exclude=None if exclude is None else self.channel(exclude))

    def do_lose(self, name: str) -> None:
        self.net.lose(self.clients[name])

    def do_stop(self) -> None:
        self.server.broadcast("stopping")
        self.server.stop()
        self.server.start(0, max_message_size=LIMIT, max_fragments=3, compression=None)

    def call(self, end: Any, method: str, *arguments: Any) -> None:
        if end is None:
            return
        result = getattr(end, method)(*arguments)
        if method == "send":
            self.said.append(result)

    def state(self) -> State:
        """All that a program can know."""

        def value(what: Any) -> Any:
            return f"{type(what).__name__}: {what}" if isinstance(what, Exception) else what

        channels: dict[str, list[Any]] = {}
        for call in self.server.record.calls:
            if call.who is not None:
                channels.setdefault(call.who.path, []).append((call.what, call.value, call.who.close_reason))
        return {
            "said": list(self.said),
            "channels": channels,
            "errors": [value(error) for error in self.server.record.values("error")],
            "open": sorted((channel.path, channel.is_open, channel.dropped) for channel in self.server.channels),
            "refusals": self.server.refusals,
            "clients": {
                name: (
                    [(call.what, value(call.value)) for call in client.record.calls],
                    client.is_connected,
                    client.close_code,
                    client.close_reason,
                )
                for name, client in self.clients.items()
            },
        }


def calls(chance: random.Random, client: bool) -> list[tuple[Any, ...]]:
    """What one end does at once."""
    made: list[tuple[Any, ...]] = []
    for _ in range(chance.randint(1, 4)):
        number = chance.randint(0, 999)
        command = chance.choice(["all", "others", "twice", "keyed", "bye", "raise"]) if chance.random() < 0.5 else "say"
        choices: list[list[tuple[Any, ...]]] = [
            [("send", f"{command} {number}" if client else f"say {number}")],
            [("send", f"{command} {number}" if client else f"say {number}")],
            [("send", b"%d" % number)],
            [("send", "fragments ", None, False), ("send", "", WsOpcode.PING), ("send", f"of {number}")],
            [("send", b"", WsOpcode.PONG)],
            [("send", "x" * chance.choice([LIMIT, LIMIT + 1]))],
            [("send", "y", None, False)] * chance.choice([2, 3]) + [("send", "y")],
            [("close", chance.choice([1000, 1001, 3000, 4999]), chance.choice(["", "r\u00e9ason"]))],
        ]
        weights = [6, 6, 4, 3, 1, 1, 1, 2]
        made += chance.choices(choices, weights)[0]
    return made


def program(seed: int) -> list[Op]:
    chance = random.Random(seed)
    ops: list[Op] = [("connect", "0"), ("connect", "1")]
    names = ["0", "1"]
    for number in range(2, STEPS):
        name = chance.choice(names)
        kind = chance.choices(["connect", "client", "channel", "broadcast", "lose", "stop"], [4, 12, 6, 3, 1, 1])[0]
        if kind == "connect":
            name = str(number)
            names.append(name)
            ops.append(("connect", name))
        elif kind in ("client", "channel"):
            ops.append((kind, name, calls(chance, kind == "client")))
        elif kind == "broadcast":
            ops.append(("broadcast", f"to all {number}", chance.choice([None, name])))
        elif kind == "lose":
            ops.append(("lose", name))
        else:
            ops.append(("stop",))
    return ops


@pytest.mark.parametrize("seed", range(40))
def test_a_world_and_sockets_agree(seed: int) -> None:
    memory, real = MemoryNet(), RealNet()
    try:
        expected, found = Run(memory), Run(real)
        for number, op in enumerate(program(seed)):
            expected.do(op)
            memory.world.advance(1.0)
            found.do(op)
            wanted = expected.state()

            def agree(wanted: State = wanted) -> bool:
                return found.state() == wanted

            try:
                real.until(agree)
            except AssertionError:
                assert found.state() == wanted, (number, op)
                raise
    finally:
        memory.close()
        real.close()
