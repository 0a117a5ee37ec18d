"""What holds for every engine of a backplane, and takes a network of its own or a while.

PYHV_BACKPLANE_MESSAGES is how many messages each node publishes in the long version (1,000 by default).
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from backplane_support import PROGRAMS, Cluster, Engine, Node, in_order, make_crowd, may_make_namespaces, namespace
from pyhv import HvWebSocketClient
from support import tick_until, wait_until
from test_backplane_redis import Plain, plain

__all__ = ["plain"]

MESSAGES = int(os.environ.get("PYHV_BACKPLANE_MESSAGES", "1000"))
KEEP = [{"topic": "k/#", "messages": 1_000_000, "max_bytes": 1 << 28}]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["nats", "redis"])
def engine(request: pytest.FixtureRequest, stack: ExitStack, tmp_path: Path) -> Engine:
    if PROGRAMS[request.param] is None:
        pytest.skip(f"needs {request.param}-server")
    # On all addresses, for nodes in networks of their own.
    engine = Engine(request.param, tmp_path / request.param, host="0.0.0.0").start()
    stack.callback(engine.close)
    return engine


def test_clients_that_move_between_nodes_miss_and_double_nothing(stack: ExitStack, engine: Engine) -> None:
    cluster = Cluster(engine, stack, {"backplane_timeout": 2.0}, KEEP)
    nodes = [cluster.node() for _ in range(3)]
    topics = [f"k/{number}" for number in range(5)]
    crowd = make_crowd(stack, nodes, 30, lambda _: topics)
    for place, node in enumerate(nodes):
        node.begin("burst", name=str(place), topics=topics, count=MESSAGES, each=5, seconds=0.01, first=0)
    rng = random.Random(7)

    def reached(goal: int) -> bool:
        return crowd.total >= goal or all(node.ready() for node in nodes)

    moves = 0
    while not all(node.ready() for node in nodes):
        client = rng.choice(crowd.clients)
        if client.is_connected:
            crowd.move(client, rng.choice(nodes))
            moves += 1
        goal = crowd.total + rng.randrange(400)
        crowd.until(partial(reached, goal))
    crowd.until(lambda: crowd.total >= 30 * 3 * MESSAGES, what="all has come")
    for client in crowd.clients:
        assert not client.gaps
        for place, topic in enumerate(topics):
            wanted = {str(n): list(range(place, MESSAGES, 5)) for n in range(3)}
            assert in_order(client.got[topic]) == wanted
    assert moves > 5


def test_a_node_whose_cable_is_pulled_catches_up(stack: ExitStack, engine: Engine) -> None:
    """Kept: all, when the cable is back. Others: what was published meanwhile is lost there, and nothing else."""
    if not may_make_namespaces():
        pytest.skip("may not make network namespaces")
    cluster = Cluster(engine, stack, {"backplane_timeout": 1.0}, KEEP)
    run, ours, theirs, plug = stack.enter_context(namespace(1))
    far = cluster.node(prefix=run, host=theirs, backplane=engine.url_at(ours))
    near = cluster.node()
    crowd = make_crowd(stack, [far, near], 4, lambda _: ["k/1", "p/1"])

    def publish(first: int, nodes: str) -> None:
        for place, node in ((0, far), (1, near)):
            if str(place) in nodes:
                topics = ["k/1", "p/1"]
                node.ask("burst", name=str(place), topics=topics, count=200, each=10, seconds=0.0, first=first)

    def all_kept(count: int) -> bool:
        return all(len(client.got["k/1"]) >= count for client in crowd.clients)

    def warm(node: Node, text: str) -> bool:
        node.ask("publish", topic="p/1", msg=text)
        return all(text in client.got["p/1"] for client in crowd.clients)

    # Each hears the other before anything counts.
    for node, other in ((far, "1"), (near, "0")):
        crowd.until(partial(warm, node, f"warm{other}:0"))
    publish(0, "01")
    crowd.until(lambda: all_kept(200) and all(client.got["p/1"].count("0:199") for client in crowd.clients))
    plug(False)
    crowd.until(lambda: far.states[-1] == "lost", what="silence is noticed")
    assert near.states == ["connected"]
    publish(200, "01")
    crowd.until(lambda: all(len(client.got["k/1"]) >= 300 for client in crowd.clients[1::2]), what="the near ones")
    plug(True)
    wait_until(lambda: far.states[-1] == "connected", what="it is back")
    crowd.until(lambda: all_kept(400), what="all that is kept")
    publish(400, "01")
    crowd.until(lambda: all_kept(600) and all("1:599" in client.got["p/1"] for client in crowd.clients))
    crowd.until(lambda: all("0:599" in client.got["p/1"] for client in crowd.clients))
    before, after = list(range(1, 200, 2)), list(range(401, 600, 2))
    for place, client in enumerate(crowd.clients):
        assert in_order(client.got["k/1"]) == {str(n): list(range(0, 600, 2)) for n in range(2)}
        assert not client.gaps
        passed = in_order([text for text in client.got["p/1"] if not text.startswith("warm")])
        own, foreign = passed[str(place % 2)], passed[str(1 - place % 2)]
        assert own == list(range(1, 600, 2)), "at its own node"
        # What the far node had queued goes when the cable is back; what it did not hear nobody tells again.
        assert foreign[:100] == before
        assert foreign[-100:] == after


def strangers(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged of nodes with other rules: who they are, and who says so."""
    found = [re.search(r"node (\w{16}) .* this node, (\w{16}):", record.getMessage()) for record in caplog.records]
    return [(match[1], match[2]) for match in found if match]


def test_a_node_with_other_rules_is_told_of_once(
    stack: ExitStack, engine: Engine, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"backplane_timeout": 1.0}
    # A process with a member, of the same rules: that it is gone is noticed when the others have missed some beats.
    cluster = Cluster(engine, stack, settings, [{"topic": topic} for topic in ("k/#", "x", "y")])
    member = HvWebSocketClient()
    stack.callback(member.close)

    def meet(*servers: Plain) -> None:
        node = cluster.node()
        member.connect(node.url + "?member=ann&in=room")
        tick_until(lambda: all(server.presence("room") == ["ann"] for server in servers), *servers, member)
        node.kill()
        member.close()
        tick_until(lambda: not any(server.presence("room") for server in servers), *servers, member)

    one, two = plain(engine.url, **settings), plain(engine.url, **settings)
    for server, topics in ((one, "xy"), (two, "yx")):
        for topic in topics:
            server.keep(topic)
    meet(one, two)
    assert not strangers(caplog), "another order is the same"
    # As long as it runs: others notice when it changes.
    one.keep("late", messages=3)
    tick_until(lambda: len(strangers(caplog)) == 2, one, two)
    meet(one, two)
    told = strangers(caplog)
    assert len(told) == 2
    assert told[0] == told[1][::-1], "each names the other"
    assert {record.levelname for record in caplog.records if "keep rules" in record.getMessage()} == {"WARNING"}
    assert one.states == two.states == ["connected"]
