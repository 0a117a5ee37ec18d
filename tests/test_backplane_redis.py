"""Topics of several processes joined by Redis: what gets through, and what may be lost when something dies, as the
table of docs/backplane.md has it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backplane_support import PATH, PROGRAMS, Client, Cluster, Crowd, Engine, Node, in_order, make_crowd
from pyhv import HvWebServer, HvWebSocketClient
from support import LIMIT, Ticker, tick_until, wait_until
from support_tls import make_certificates

pytestmark = pytest.mark.skipif(PROGRAMS["redis"] is None, reason="needs redis-server")
CLI = shutil.which("redis-cli", path=PATH)

#: Topics below "k" keep messages.
KEEP: list[dict[str, Any]] = [{"topic": "k/#", "messages": 100_000, "max_bytes": 1 << 26}]
#: A silent node is given up after this.
TIMEOUT = 2.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def engine(stack: ExitStack, tmp_path: Path) -> Engine:
    engine = Engine("redis", tmp_path / "redis").start()
    stack.callback(engine.close)
    return engine


@pytest.fixture
def cluster(stack: ExitStack, engine: Engine) -> Cluster:
    return Cluster(engine, stack, {"backplane_timeout": TIMEOUT}, KEEP)


def redis(engine: Engine, *command: str) -> str:
    """What Redis' own client has to say."""
    assert CLI is not None
    done = subprocess.run(
        [CLI, "-p", str(engine.port), *command], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    return done.stdout


def begin_bursts(nodes: Sequence[Node], topics: Sequence[str], count: int, *, seconds: float = 0.0) -> None:
    """Each node publishes `count` messages "NODE:NUMBER", the topics in turn."""
    for number, node in enumerate(nodes):
        node.begin("burst", name=str(number), topics=topics, count=count, each=10, seconds=seconds, first=0)


def end_bursts(crowd: Crowd, nodes: Sequence[Node]) -> list[dict[str, Any]]:
    crowd.until(lambda: all(node.ready() for node in nodes), what="all is published")
    return [node.end() for node in nodes]


def numbers(got: Sequence[str]) -> dict[str, list[int]]:
    """By publisher; each one's in its order, each once."""
    return in_order(got)


def connected(node: Node) -> bool:
    return node.states[-1:] == ["connected"]


def has_states(node: Node | Plain, states: list[str]) -> bool:
    return node.states == states


def has_members(node: Node, members: list[str]) -> bool:
    return bool(node.ask("presence", topic="room") == members)


def has_ended(node: Node) -> bool:
    return node.process.poll() is not None


def are_connected(clients: Sequence[Client], count: int) -> bool:
    return sum(client.is_connected for client in clients) == count


def crowd_has(crowd: Crowd, messages: int) -> bool:
    return crowd.total > messages


def test_300_clients_on_three_nodes_get_all_of_100_topics_once_and_in_order(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node() for _ in range(3)]
    topics = [f"{kind}/{number}" for number in range(50) for kind in ("k", "p")]
    crowd = make_crowd(stack, nodes, 300, lambda i: [topics[i % 100], topics[(i * 7 + 3) % 100]])
    begin_bursts(nodes, topics, 1000)
    end_bursts(crowd, nodes)
    wanted = sum(len(client.topics) * 30 for client in crowd.clients)
    crowd.until(lambda: crowd.total >= wanted, what="all has come")
    orders: dict[str, set[tuple[str, ...]]] = {}
    for client in crowd.clients:
        for topic in client.topics:
            place = topics.index(topic)
            assert in_order(client.got[topic]) == {str(n): list(range(place, 1000, 100)) for n in range(3)}
            orders.setdefault(topic, set()).add(tuple(client.got[topic]))
        assert not client.gaps
    assert crowd.total == wanted
    # Those that are kept come in one order for all.
    assert all(len(order) == 1 for topic, order in orders.items() if topic.startswith("k"))


def test_patterns_that_overlap_mean_a_message_once(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node(), cluster.node()]
    filters = ["p/1", "p/+", "p/#", "#", "+/1", "p*/1"]
    crowd = make_crowd(stack, nodes, 2, lambda _: filters)
    names = ["p/1", "p", "p/1/2", "q/1", "p*/1", "x"]
    for name in names:
        nodes[0].ask("publish", topic=name, msg="0:1")
    crowd.until(lambda: all("x" in client.got for client in crowd.clients))
    for client in crowd.clients:
        assert client.got == {name: ["0:1"] for name in names}


def test_the_engine_is_killed_and_comes_back(stack: ExitStack, cluster: Cluster) -> None:
    """Kept: nothing is lost. Others: a batch that was under way; at their own node nothing."""
    nodes = [cluster.node(backplane_timeout=5.0) for _ in range(3)]
    crowd = make_crowd(stack, nodes, 12, lambda _: ["k/1", "p/1"])
    begin_bursts(nodes, ["k/1", "p/1"], 3000, seconds=0.005)
    crowd.until(lambda: crowd.total > 2000, what="they are under way")
    cluster.engine.kill()
    before = crowd.total
    crowd.until(lambda: crowd.total > before + 200, what="local delivery goes on")
    cluster.engine.start()
    end_bursts(crowd, nodes)
    crowd.until(lambda: all(len(client.got["k/1"]) >= 4500 for client in crowd.clients), what="all that is kept")
    for node in nodes:
        wait_until(partial(connected, node))
        node.ask("publish", topic="p/1", msg="last:1")
    crowd.until(lambda: all(client.got["p/1"].count("last:1") == 3 for client in crowd.clients), what="the last ones")
    lost = 0
    for place, client in enumerate(crowd.clients):
        assert numbers(client.got["k/1"]) == {str(n): list(range(0, 3000, 2)) for n in range(3)}
        passed = numbers([text for text in client.got["p/1"] if not text.startswith("last")])
        assert passed[str(place % 3)] == list(range(1, 3000, 2)), "at its own node"
        lost += sum(1500 - len(mine) for mine in passed.values())
    # What was being sent, of each of three nodes, to eight clients of the others: a batch has at most 256.
    assert lost <= 3 * 8 * 256
    assert len({tuple(client.got["k/1"]) for client in crowd.clients}) == 1


@pytest.mark.skipif(CLI is None, reason="needs redis-cli")
def test_connections_that_break_lose_and_double_nothing_that_is_kept(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 4, lambda _: ["k/1"])
    begin_bursts(nodes, ["k/1"], 2000, seconds=0.002)
    for step in range(1, 8):
        crowd.until(partial(crowd_has, crowd, step * 800))
        redis(cluster.engine, "CLIENT", "KILL", "TYPE", "normal" if step % 2 else "pubsub")
    end_bursts(crowd, nodes)
    crowd.until(lambda: crowd.total >= 16_000, what="all has come")
    for client in crowd.clients:
        assert numbers(client.got["k/1"]) == {"0": list(range(2000)), "1": list(range(2000))}
        assert not client.gaps
    assert any(node.states.count("lost") for node in nodes)


def test_a_node_is_killed_and_its_clients_go_on_elsewhere(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node() for _ in range(3)]
    crowd = make_crowd(stack, nodes, 9, lambda _: ["k/1"])
    member = HvWebSocketClient()
    stack.callback(member.close)
    member.connect(nodes[0].url + "?member=ann&in=room")
    for node in nodes:
        crowd.until(partial(has_members, node, ["ann"]))
    begin_bursts(nodes[1:], ["k/1"], 2000, seconds=0.002)
    crowd.until(lambda: crowd.total > 3000)
    nodes[0].kill()
    for client in crowd.clients[::3]:
        crowd.move(client, nodes[1])
    end_bursts(crowd, nodes[1:])
    crowd.until(lambda: crowd.total >= 9 * 4000, what="all has come")
    for client in crowd.clients:
        assert numbers(client.got["k/1"]) == {"0": list(range(2000)), "1": list(range(2000))}
        assert not client.gaps
    for node in nodes[1:]:
        crowd.until(partial(has_members, node, []), what="its members are taken back")
        assert node.ask("presences") == [["ann"], ["ann"]]


def test_a_node_that_was_cut_off_catches_up(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node() for _ in range(3)]
    crowd = make_crowd(stack, nodes, 6, lambda _: ["k/1", "p/1"])
    member = HvWebSocketClient()
    stack.callback(member.close)
    member.connect(nodes[0].url + "?member=ann&in=room")
    crowd.until(lambda: nodes[1].ask("presence", topic="room") == ["ann"])
    nodes[0].pause()
    crowd.until(lambda: nodes[1].ask("presence", topic="room") == [], what="it is taken for gone")
    begin_bursts(nodes[1:], ["k/1", "p/1"], 2000)
    end_bursts(crowd, nodes[1:])
    nodes[0].resume()
    crowd.until(lambda: all(len(client.got["k/1"]) == 2000 for client in crowd.clients), what="all that is kept")
    crowd.until(lambda: nodes[1].ask("presence", topic="room") == ["ann"], what="it is back")
    for place, client in enumerate(crowd.clients):
        assert numbers(client.got["k/1"]) == {str(n): list(range(0, 2000, 2)) for n in range(2)}
        passed = numbers(client.got["p/1"])
        if place % 3:
            assert passed == {str(n): list(range(1, 2000, 2)) for n in range(2)}
        assert not client.gaps
    assert nodes[1].ask("presences") == [["ann", "ann"], ["ann"]]


def test_a_rolling_restart_loses_nothing_that_is_kept(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node() for _ in range(3)]
    crowd = make_crowd(stack, nodes, 6, lambda _: ["k/1"])
    sent = 0

    def publish(node: Node, count: int) -> None:
        nonlocal sent
        for _ in range(count):
            node.ask("publish", topic="k/1", msg=f"all:{sent}")
            sent += 1

    for place in range(3):
        publish(nodes[(place + 1) % 3], 20)
        old = nodes[place]
        theirs = crowd.clients[place::3]
        old.begin("stop")
        crowd.until(partial(has_ended, old))
        crowd.until(partial(are_connected, theirs, 0))
        publish(nodes[(place + 1) % 3], 20)
        # They come as soon as it listens, before it has the engine.
        nodes[place] = cluster.node(connected=False)
        for client in theirs:
            crowd.move(client, nodes[place])
        crowd.until(partial(are_connected, theirs, len(theirs)))
        wait_until(partial(connected, nodes[place]))
        publish(nodes[place], 20)
    crowd.until(lambda: all(len(client.got["k/1"]) >= sent for client in crowd.clients), what="all has come")
    for client in crowd.clients:
        assert numbers(client.got["k/1"]) == {"all": list(range(sent))}
        assert not client.gaps


def test_a_new_node_has_what_was_kept_and_gives_nobody_what_is_old(stack: ExitStack, cluster: Cluster) -> None:
    one = cluster.node()
    for number in range(200):
        one.ask("publish", topic="k/1", msg=f"0:{number}")
    crowd = make_crowd(stack, [one], 1, lambda _: ["k/1"])
    cluster.engine.pause()
    two = cluster.node(connected=False)
    now, oldest, behind = Client(), Client(), Client()
    joined = Crowd([now, oldest, behind, *crowd.clients])
    stack.callback(joined.close)
    now.join(two, "k/1")
    oldest.join(two, "k/1", after="oldest")
    behind.join(two, "k/1", after=crowd.clients[0].topic_position("k/1"))
    joined.until(lambda: two.ask("count", topic="k/1") == 3 and now.topic_position("k/1"))
    assert two.states == [] or two.states == ["lost"]
    cluster.engine.resume()
    wait_until(lambda: connected(two))
    one.ask("publish", topic="k/1", msg="0:200")
    joined.until(lambda: all(client.got["k/1"][-1:] == ["0:200"] for client in joined.clients))
    assert now.got["k/1"] == behind.got["k/1"] == ["0:200"]
    assert numbers(oldest.got["k/1"]) == {"0": list(range(201))}
    assert not any(client.gaps for client in joined.clients)


def lose_data(stack: ExitStack, cluster: Cluster, folder: str) -> tuple[list[Node], Crowd, str | None]:
    """Two nodes whose engine starts again with nothing, and the position of what they had."""
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["k/1"])
    nodes[0].ask("publish", topic="k/1", msg="0:0")
    crowd.until(lambda: crowd.total == 2)
    before = crowd.clients[0].topic_position("k/1")
    cluster.engine.kill()
    shutil.rmtree(cluster.engine.folder / folder)
    cluster.engine.start()
    return nodes, crowd, before


def test_data_that_are_gone_are_told_as_a_gap(stack: ExitStack, cluster: Cluster) -> None:
    nodes, crowd, before = lose_data(stack, cluster, "appendonlydir")
    for node in nodes:
        wait_until(partial(has_states, node, ["connected", "lost", "connected"]))
    crowd.until(lambda: all(client.gaps == ["k/1"] for client in crowd.clients), what="they are told")
    nodes[1].ask("publish", topic="k/1", msg="0:1")
    crowd.until(lambda: all(client.got["k/1"] == ["0:0", "0:1"] for client in crowd.clients))
    late = Client()
    crowd.clients.append(late)
    late.join(nodes[0], "k/1", after=before)
    crowd.until(lambda: late.gaps == ["k/1"] and late.got["k/1"] == ["0:1"])


@pytest.mark.skipif(CLI is None, reason="needs redis-cli")
def test_more_than_the_engine_keeps_is_told_as_a_gap(stack: ExitStack, engine: Engine) -> None:
    # Redis cuts whole nodes of a hundred entries.
    cluster = Cluster(engine, stack, {"backplane_timeout": TIMEOUT, "backplane_history": 100}, KEEP)
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["k/1"])
    nodes[0].pause()
    begin_bursts(nodes[1:], ["k/1"], 5000)
    end_bursts(crowd, nodes[1:])
    crowd.until(lambda: len(crowd.clients[1].got["k/1"]) == 5000)
    # As a network does that was gone for long.
    redis(engine, "CLIENT", "KILL", "TYPE", "normal")
    nodes[0].resume()
    crowd.until(lambda: crowd.clients[0].got["k/1"][-1:] == ["0:4999"])
    got = numbers(crowd.clients[0].got["k/1"])["0"]
    assert 100 <= len(got) < 5000
    assert crowd.clients[0].gaps == ["k/1"]
    assert not crowd.clients[1].gaps


@pytest.mark.parametrize("overflow", ["drop_oldest", "refuse"])
def test_what_waits_for_the_engine_is_bounded(stack: ExitStack, cluster: Cluster, overflow: str) -> None:
    nodes = [cluster.node(backplane_buffer=20_000, backplane_overflow=overflow), cluster.node()]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["k/1"])
    cluster.engine.kill()
    wait_until(lambda: nodes[0].states[-1] == "lost")
    begin_bursts(nodes[:1], ["k/1"], 1000)
    [result] = end_bursts(crowd, nodes[:1])
    state, dropped = nodes[0].ask("dropped")
    assert state == "lost"
    assert 800 < dropped < 1000
    cluster.engine.start()
    kept = range(1000 - dropped) if overflow == "refuse" else range(dropped, 1000)
    crowd.until(lambda: all(client.got["k/1"][-1:] == [f"0:{kept[-1]}"] for client in crowd.clients))
    for client in crowd.clients:
        assert numbers(client.got["k/1"]) == {"0": list(kept)}
    assert result["refused"] == (list(range(kept[-1] + 1, 1000)) if overflow == "refuse" else [])


def test_an_engine_that_hangs_holds_up_nothing(stack: ExitStack, cluster: Cluster) -> None:
    node = cluster.node()
    crowd = make_crowd(stack, [node], 2, lambda _: ["p/1", "k/1"])
    cluster.engine.pause()
    begin_bursts([node], ["p/1"], 2000)
    end_bursts(crowd, [node])
    crowd.until(lambda: crowd.total == 4000, what="local delivery goes on")
    crowd.until(lambda: node.states == ["connected", "lost"], what="silence is noticed")
    cluster.engine.resume()
    wait_until(lambda: connected(node))
    node.stop()


def test_stop_sends_what_waits_and_says_farewell(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes[1:], 1, lambda _: ["k/1", "p/1"])
    member = HvWebSocketClient()
    stack.callback(member.close)
    member.connect(nodes[0].url + "?member=ann&in=room")
    crowd.until(lambda: nodes[1].ask("presence", topic="room") == ["ann"])
    nodes[0].begin("burst", name="0", topics=["k/1", "p/1"], count=1000, each=1000, seconds=0, first=0)
    nodes[0].begin("stop")
    crowd.until(lambda: member.tick() * 0 + crowd.total == 1000, what="all has come")
    assert nodes[0].process.wait(LIMIT) == 0
    crowd.until(lambda: nodes[1].ask("presence", topic="room") == [])


def test_stop_does_not_wait_for_an_engine_that_is_away(cluster: Cluster) -> None:
    node = cluster.node()
    cluster.engine.kill()
    wait_until(lambda: node.states[-1] == "lost")
    node.ask("publish", topic="k/1", msg="0:0")
    node.stop()
    assert node.process.returncode == 0


@pytest.mark.skipif(CLI is None, reason="needs redis-cli")
def test_a_user_may_be_confined_to_what_the_documentation_says(plain: Callable[..., Plain], engine: Engine) -> None:
    text = (Path(__file__).parent.parent / "docs" / "backplane.md").read_text()
    rights = text.partition("`~pyhv:*")[2].partition("`")[0].split()
    redis(engine, "ACL", "SETUSER", "small", "on", ">secret", "~pyhv:*", *rights)
    url = f"redis://small:secret@127.0.0.1:{engine.port}"
    one, two = plain(url), plain(url)
    tick_until(lambda: one.states == two.states == ["connected"], one, two)
    one.publish("k/1", "x")
    tick_until(lambda: redis(engine, "XLEN", "pyhv:stream") == "1\n", one, two)
    two.stop()
    one.stop()
    assert "lost" not in one.states + two.states
    assert "pyhv:sent" not in redis(engine, "KEYS", "*")


@pytest.mark.skipif(CLI is None, reason="needs redis-cli")
def test_other_programs_may_publish(stack: ExitStack, cluster: Cluster) -> None:
    node = cluster.node()
    crowd = make_crowd(stack, [node], 1, lambda _: ["p/1"])
    letter = "1 0 0 t p/1\nhello"
    assert redis(cluster.engine, "PUBLISH", "pyhv:t:p/1", "nonsense") == "1\n"
    for _ in range(2):
        assert redis(cluster.engine, "PUBLISH", "pyhv:t:p/1", letter) == "1\n"
    crowd.until(lambda: crowd.total == 2)
    assert crowd.clients[0].got["p/1"] == ["hello", "hello"]


def test_systems_with_another_prefix_do_not_meet(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node(), cluster.node(backplane_prefix="other")]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["k/1", "p/1"])
    for place, node in enumerate(nodes):
        for topic in ("k/1", "p/1"):
            node.ask("publish", topic=topic, msg=f"{place}:0")
    crowd.until(lambda: crowd.total == 4)
    for place, client in enumerate(crowd.clients):
        assert client.got == {"k/1": [f"{place}:0"], "p/1": [f"{place}:0"]}


class Plain(HvWebServer):
    """One process that is several servers is several nodes."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def on_backplane(self, state: str) -> None:
        self.states.append(state)


@pytest.fixture
def plain(stack: ExitStack) -> Callable[..., Plain]:
    def start(url: str, **settings: Any) -> Plain:
        server = Plain()
        server.keep("k/#")
        server.start(0, backplane=url, **settings)
        stack.callback(server.stop)
        return server

    return start


def is_connected(server: Plain) -> None:
    tick_until(lambda: server.states[-1:] == ["connected"], server)
    assert server.backplane_state == "connected"


def test_publish_says_what_becomes_of_it(plain: Callable[..., Plain], engine: Engine) -> None:
    server = plain(engine.url)
    assert server.backplane_state == "connecting"
    is_connected(server)
    assert server.publish("k/1", "x") == ""
    position = server.publish("p/1", "x")
    assert position
    server.stop()
    assert server.publish("p/1", "x") is None
    assert server.backplane_state is None


def test_it_starts_again(plain: Callable[..., Plain], engine: Engine) -> None:
    server = plain(engine.url)
    is_connected(server)
    server.stop()
    server.start(0, backplane=engine.url)
    tick_until(lambda: server.states == ["connected", "connected"], server)
    server.stop()
    server.start(0)
    assert server.backplane_state is None
    assert server.publish("k/1", "x")


class Swallower:
    """Stands between a node and Redis; once it is armed it breaks the connection on which the next append was confirmed
    before the node hears of that."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.armed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.upstream))
            doomed = threading.Event()
            for source, target, outwards in ((near, far, True), (far, near, False)):
                threading.Thread(target=self.pump, args=(source, target, outwards, doomed), daemon=True).start()

    def pump(self, source: socket.socket, target: socket.socket, outwards: bool, doomed: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if outwards and b"EVALSHA" in data and self.armed.is_set():
                    self.armed.clear()
                    doomed.set()
                if not outwards and doomed.is_set():
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.mark.skipif(CLI is None, reason="needs redis-cli")
def test_an_append_whose_confirmation_was_lost_is_there_once(
    stack: ExitStack, plain: Callable[..., Plain], engine: Engine
) -> None:
    between = Swallower(engine.port)
    stack.callback(between.listener.close)
    server = plain(f"redis://127.0.0.1:{between.port}")
    is_connected(server)
    between.armed.set()
    server.publish("k/1", "one")
    tick_until(lambda: server.states == ["connected", "lost", "connected"], server)
    server.publish("k/1", "two")
    tick_until(lambda: "two" in redis(engine, "XRANGE", "pyhv:stream", "-", "+"), server)
    assert redis(engine, "XLEN", "pyhv:stream") == "2\n"


@pytest.mark.parametrize("user", [None, "me"])
def test_passwords(
    stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture, user: str | None
) -> None:
    engine = Engine("redis", tmp_path / "redis", user=user, password="hunter2").start()
    stack.callback(engine.close)
    is_connected(plain(engine.url))
    wrong = plain(engine.url.replace("hunter2", "swordfish"), backplane_timeout=0.5)
    tick_until(lambda: wrong.states == ["lost"], wrong)
    tick_until(lambda: "authentication failed" in caplog.text, wrong)
    assert "is away" in caplog.text
    assert "swordfish" not in caplog.text
    assert "hunter2" not in caplog.text


def test_tls(stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    engine = Engine("redis", tmp_path / "redis", password="hunter2", certificates=certificates).start()
    stack.callback(engine.close)
    is_connected(plain(engine.url, backplane_ca_file=certificates.ca))
    is_connected(plain(engine.url, backplane_fingerprint=certificates.fingerprint))
    stranger = make_certificates(tmp_path / "others")
    for settings in ({}, {"backplane_ca_file": stranger.ca}, {"backplane_fingerprint": "00" * 32}):
        caplog.clear()
        wrong = plain(engine.url, **settings)
        tick_until(partial(has_states, wrong, ["lost"]), wrong)
        tick_until(lambda: "TLS" in caplog.text, wrong)


def test_what_will_not_do_is_said_at_once(tmp_path: Path) -> None:
    server = HvWebServer()
    secret = "redis://me:hunter2@"
    for settings, named in [
        ({"backplane": "http://me:hunter2@host"}, "http://host"),
        ({"backplane": secret}, "redis://"),
        ({"backplane": secret + "host/x"}, "redis://host/x"),
        ({"backplane": secret + "a,b"}, "clusters"),
        ({"backplane": "redis://h", "backplane_overflow": "wait"}, "backplane_overflow"),
        ({"backplane": "redis://h", "backplane_prefix": "a b"}, "backplane_prefix"),
        ({"backplane": "redis://h", "backplane_buffer": -1}, "backplane_buffer"),
        ({"backplane": "redis://h", "backplane_history": 0}, "backplane_history"),
        ({"backplane": "redis://h", "backplane_timeout": 0.01}, "backplane_timeout"),
        ({"backplane": "redis://h", "backplane_ca_file": "x"}, "backplane_ca_file"),
        ({"backplane": "rediss://h", "backplane_ca_file": tmp_path / "missing"}, "missing"),
        ({"backplane": "redis://h", "backplane_credentials": "x"}, "backplane_credentials"),
    ]:
        with pytest.raises((ValueError, OSError)) as raised:
            server.start(0, **settings)  # type: ignore[arg-type]
        assert named in str(raised.value)
        assert "hunter2" not in str(raised.value)
        assert not server.is_running
    with pytest.raises(TypeError, match="backplane"):
        server.start(0, backplane=1)  # type: ignore[arg-type]


def listeners(stack: ExitStack, *servers: Plain) -> tuple[list[HvWebSocketClient], list[list[str | bytes]]]:
    """A client for each of the servers, and what each of them gets."""
    clients = [HvWebSocketClient() for _ in servers]
    got: list[list[str | bytes]] = [[] for _ in clients]
    for server, client, mine in zip(servers, clients, got, strict=True):
        client.on_message = mine.append  # type: ignore[method-assign,assignment]
        stack.callback(client.close)
        client.connect(f"ws://127.0.0.1:{server.port}/")
    return clients, got


def test_a_filter_that_is_given_up_takes_no_other_along(
    stack: ExitStack, plain: Callable[..., Plain], engine: Engine
) -> None:
    """Plus and hash are much the same to Redis."""
    one, two = plain(engine.url), plain(engine.url)
    tick_until(lambda: one.states == two.states == ["connected"], one, two)
    clients, (got, told) = listeners(stack, two, one)
    everybody: list[Ticker] = [one, two, *clients]
    tick_until(lambda: one.channels and two.channels, *everybody)
    one.channels[0].subscribe("done")
    for pattern in ("#", "+"):
        two.channels[0].subscribe(pattern)

    def passes() -> bool:
        one.publish("a", "both")
        two.publish("done", "begun")
        return "both" in got and "begun" in told

    tick_until(passes, *everybody)
    two.channels[0].unsubscribe("+")
    # The engine is told before anything that is published after it.
    two.publish("done", "given up")
    tick_until(lambda: "given up" in told, *everybody)
    one.publish("a", "still")
    tick_until(lambda: "still" in got, *everybody)


def test_exclude_holds_for_what_comes_back(stack: ExitStack, plain: Callable[..., Plain], engine: Engine) -> None:
    one, two = plain(engine.url), plain(engine.url)
    tick_until(lambda: one.states == two.states == ["connected"], one, two)
    clients, got = listeners(stack, one, one, two)
    everybody: list[Ticker] = [one, two, *clients]
    tick_until(lambda: len(one.channels) == 2 and len(two.channels) == 1, *everybody)
    for server in (one, two):
        for channel in server.channels:
            channel.subscribe("k/1")
    first = one.channels[0]
    one.publish("k/1", "not for one", exclude=first)
    one.publish("k/1", "for all")
    tick_until(lambda: all(mine[-1:] == ["for all"] for mine in got), *everybody)
    assert sorted(map(len, got[:2])) == [1, 2]
    assert got[2] == ["not for one", "for all"]


@pytest.mark.parametrize("topic", ["a", "k/1"])
def test_keys_hold_at_other_nodes(stack: ExitStack, plain: Callable[..., Plain], engine: Engine, topic: str) -> None:
    one, two = plain(engine.url), plain(engine.url)
    tick_until(lambda: one.states == two.states == ["connected"], one, two)
    clients, got = listeners(stack, two, two)
    everybody: list[Ticker] = [one, two, *clients]
    tick_until(lambda: len(two.channels) == 2, *everybody)
    for channel in two.channels:
        channel.subscribe(topic)
    # Interest has to be at the other node before a message can be for it.
    tick_until(lambda: one.publish(topic, "first") is not None and all(got), *everybody)
    held = two.channels[0]
    held.send("held ", fin=False)  # until its end nothing else leaves
    for number in range(5):
        one.publish(topic, f"x{number}", key="x")
        one.publish(topic, f"y{number}", key=b"y")
    one.publish(topic, "last")
    tick_until(lambda: any(mine[-1:] == ["last"] for mine in got), *everybody)
    held.send("back")
    tick_until(lambda: all(mine[-1:] == ["last"] for mine in got), *everybody)
    (mine,) = (mine for mine in got if "held back" in mine)
    behind = mine[mine.index("held back") + 1 :]
    assert [msg for msg in behind if msg != "first"] == ["x4", "y4", "last"]
