"""Topics of several processes joined by a cluster of three NATS servers, of which some die.

What is said of clusters in docs/backplane.md.
"""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backplane_support import PROGRAMS, Cluster, Crowd, Engine, Node, free_port, in_order, make_crowd
from support import HOST, LIMIT, wait_until
from test_backplane_nats import NatsClient
from test_backplane_redis import KEEP, TIMEOUT, begin_bursts, connected, crowd_has, end_bursts, stack

__all__ = ["stack"]

pytestmark = pytest.mark.skipif(PROGRAMS["nats"] is None, reason="needs nats-server")


class Servers:
    """Three NATS servers that are one cluster."""

    def __init__(self, folder: Path, *, jetstream: bool = True) -> None:
        self.jetstream = jetstream
        routes = [free_port() for _ in range(3)]
        url = ",".join(f"nats://{HOST}:{port}" for port in routes)
        self.monitors = [free_port() for _ in range(3)]
        self.all: list[Engine] = []
        folder.mkdir()
        for place in range(3):
            configuration = folder / f"{place}.conf"
            # How long a server that is to end waits before it closes connections.
            configuration.write_text('lame_duck_grace_period: "100ms"\n')
            more = ["-c", str(configuration), "-n", f"server{place}", "-m", str(self.monitors[place])]
            more += ["-cluster_name", "test", "-cluster", f"nats://{HOST}:{routes[place]}", "-routes", url]
            self.all.append(Engine("nats", folder / str(place), jetstream=jetstream, more=more))

    def start(self, stack: ExitStack) -> Servers:
        """Starts them; they end with `stack`."""
        for engine in self.all:
            stack.callback(engine.close)
            engine.start()
        wait_until(self._is_whole, what="they are one cluster")
        return self

    @property
    def url(self) -> str:
        """As a node is told it."""
        return "nats://" + ",".join(f"{HOST}:{engine.port}" for engine in self.all)

    def monitor(self, place: int, what: str) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.monitors[place]}/{what}", timeout=LIMIT) as answer:
            return json.load(answer)

    def _is_whole(self) -> bool:
        if any(self.monitor(place, "routez")["num_routes"] < 2 for place in range(3)):
            return False
        meta = [self.monitor(place, "jsz").get("meta_cluster", {}) for place in range(3)]
        return not self.jetstream or all(cluster.get("leader") for cluster in meta)

    def nodes_at(self, place: int) -> int:
        """How many nodes a server has."""
        names = [connection.get("name", "") for connection in self.monitor(place, "connz")["connections"]]
        return sum(name.startswith("pyhv-") for name in names)

    def ask(self, subject: str, question: dict[str, Any]) -> dict[str, Any]:
        """Asks JetStream."""
        client = NatsClient(next(engine for engine in self.all if engine.process is not None))
        try:
            return client.ask(f"$JS.API.{subject}", question)
        finally:
            client.close()

    def make_stream(self, **more: Any) -> None:
        """As somebody may do before the first node starts."""
        config = {"name": "pyhv", "subjects": ["pyhv.k.>"], "num_replicas": 3, "storage": "file", **more}
        answer = self.ask("STREAM.CREATE.pyhv", config)
        assert "error" not in answer, answer

    def stream(self) -> dict[str, Any]:
        return self.ask("STREAM.INFO.pyhv", {})

    def leader(self) -> int:
        """Of the stream."""
        return int(self.stream()["cluster"]["leader"].removeprefix("server"))

    def join(self, stack: ExitStack, keep: Sequence[dict[str, Any]], **settings: Any) -> Cluster:
        """For nodes that are told all addresses."""
        return Cluster(self.all[0], stack, {"backplane": self.url, "backplane_timeout": TIMEOUT, **settings}, keep)

    def one_node_each(self, cluster: Cluster) -> list[Node]:
        """A node at each server. They choose at random."""
        nodes: list[Node] = []
        for place in range(3):
            while len(nodes) == place:
                nodes.append(cluster.node())
                if not self.nodes_at(place):
                    nodes.pop().close()
        return nodes


def test_nodes_of_a_server_that_is_killed_go_to_another(stack: ExitStack, tmp_path: Path) -> None:
    """Topics that keep nothing: what is published between nodes of other servers is not touched by it."""
    servers = Servers(tmp_path / "servers", jetstream=False).start(stack)
    cluster = servers.join(stack, [])
    nodes = servers.one_node_each(cluster)
    # What servers tell of each other is not used.
    faithful = cluster.node(backplane=servers.all[0].url)
    crowd = make_crowd(stack, nodes, 6, lambda number: ["p/1"] if number % 2 else ["p/+"])
    hear_each_other(crowd, nodes, "warm")
    begin_bursts(nodes, ["p/1"], 1000, seconds=0.005)
    crowd.until(partial(crowd_has, crowd, 6 * 900), what="they are under way")
    servers.all[0].kill()
    end_bursts(crowd, nodes)
    crowd.until(lambda: nodes[0].states == ["connected", "lost", "connected"], what="it is at another server")
    assert nodes[1].states == nodes[2].states == ["connected"]
    assert faithful.states == ["connected", "lost"]
    assert servers.nodes_at(1) + servers.nodes_at(2) == 3
    hear_each_other(crowd, nodes, "again")
    for place, node in enumerate(nodes):
        node.ask("burst", name=str(place), topics=["p/1"], count=500, each=10, seconds=0.0, first=1000)
    crowd.until(lambda: all(client.got["p/1"].count(f"{n}:1499") for client in crowd.clients for n in range(3)))
    servers.all[0].start()
    wait_until(lambda: connected(faithful))
    for number, client in enumerate(crowd.clients):
        passed = in_order([text for text in client.got["p/1"] if text[0].isdigit()])
        for place in range(3):
            if place == number % 3 or 0 not in (place, number % 3):
                assert passed[str(place)] == list(range(1500)), "at its own node, and between those of other servers"
            else:
                # Lost is what was published in between, and nothing before or after.
                assert passed[str(place)][:200] == list(range(200))
                assert passed[str(place)][-500:] == list(range(1000, 1500))


def hear_each_other(crowd: Crowd, nodes: Sequence[Node], text: str) -> None:
    """Returns when a message of every node has come to every client."""
    for place, node in enumerate(nodes):
        crowd.until(partial(is_heard, crowd, node, f"{text}{place}"), what="all are subscribed at all servers")


def is_heard(crowd: Crowd, node: Node, text: str) -> bool:
    node.ask("publish", topic="p/1", msg=text)
    return all(text in client.got["p/1"] for client in crowd.clients)


def check_all_came(crowd: Crowd, count: int) -> None:
    """Of each of three nodes `count` messages, in one order everywhere."""
    crowd.until(lambda: all(len(client.got["k/1"]) >= 3 * count for client in crowd.clients), what="all has come")
    for client in crowd.clients:
        assert in_order(client.got["k/1"]) == {str(n): list(range(count)) for n in range(3)}
        assert not client.gaps
    assert len({tuple(client.got["k/1"]) for client in crowd.clients}) == 1


def test_the_leader_of_the_stream_is_killed(stack: ExitStack, tmp_path: Path) -> None:
    """Of one that a node has made."""
    servers = Servers(tmp_path / "servers").start(stack)
    nodes = servers.one_node_each(servers.join(stack, KEEP, backplane_history=20_000))
    crowd = make_crowd(stack, nodes, 3, lambda _: ["k/1"])
    begin_bursts(nodes, ["k/1"], 4000, seconds=0.003)
    crowd.until(partial(crowd_has, crowd, 3 * 3000), what="they are under way")
    leader = servers.leader()
    servers.all[leader].kill()
    end_bursts(crowd, nodes)
    check_all_came(crowd, 4000)
    crowd.until(lambda: all(connected(node) for node in nodes))
    assert nodes[leader].states[:2] == ["connected", "lost"]
    assert servers.leader() != leader
    stream = servers.stream()
    assert (stream["config"]["num_replicas"], stream["state"]["messages"]) == (3, 12_000)


def test_the_stream_gets_another_leader_again_and_again(stack: ExitStack, tmp_path: Path) -> None:
    """What comes while there is none goes again, and nobody loses the backplane for it."""
    servers = Servers(tmp_path / "servers").start(stack)
    servers.make_stream()
    nodes = servers.one_node_each(servers.join(stack, KEEP, backplane_timeout=10.0))
    crowd = make_crowd(stack, nodes, 3, lambda _: ["k/1"])
    begin_bursts(nodes, ["k/1"], 3000, seconds=0.005)
    for step in range(1, 6):
        crowd.until(partial(crowd_has, crowd, step * 4500), what="they are under way")
        assert servers.ask("STREAM.LEADER.STEPDOWN.pyhv", {})["success"]
    end_bursts(crowd, nodes)
    check_all_came(crowd, 3000)
    assert [node.states for node in nodes] == [["connected"]] * 3


def test_a_server_is_stopped_with_care(stack: ExitStack, tmp_path: Path) -> None:
    """Lame duck mode: it hands over what it leads, then closes connections, then ends."""
    servers = Servers(tmp_path / "servers").start(stack)
    servers.make_stream()
    nodes = servers.one_node_each(servers.join(stack, KEEP))
    crowd = make_crowd(stack, nodes, 3, lambda _: ["k/1"])
    begin_bursts(nodes, ["k/1"], 4000, seconds=0.003)
    crowd.until(partial(crowd_has, crowd, 3 * 3000), what="they are under way")
    leader = servers.leader()
    servers.all[leader].signal(signal.SIGUSR2)
    end_bursts(crowd, nodes)
    check_all_came(crowd, 4000)
    process = servers.all[leader].process
    assert process is not None
    crowd.until(lambda: process.poll() is not None, what="it has ended")
    assert process.returncode == 0
    crowd.until(lambda: all(connected(node) for node in nodes))
    # One that makes a new link, because JetStream had sent by that server, is there twice or not at all meanwhile.
    crowd.until(lambda: sum(servers.nodes_at(place) for place in range(3) if place != leader) == 3)
