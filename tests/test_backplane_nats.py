"""Topics of several processes joined by NATS: the same as with Redis, and what is NATS' own."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# What holds for every engine, with the engine of this module.
from backplane_support import PROGRAMS, Client, Cluster, Engine, Node, in_order, make_crowd
from support import HOST, LIMIT, tick_until, wait_until
from support_nkeys import make_credentials
from support_tls import make_certificates
from test_backplane_redis import (
    KEEP,
    TIMEOUT,
    Plain,
    begin_bursts,
    cluster,
    connected,
    end_bursts,
    is_connected,
    lose_data,
    plain,
    stack,
    test_300_clients_on_three_nodes_get_all_of_100_topics_once_and_in_order,
    test_a_new_node_has_what_was_kept_and_gives_nobody_what_is_old,
    test_a_node_is_killed_and_its_clients_go_on_elsewhere,
    test_a_node_that_was_cut_off_catches_up,
    test_a_rolling_restart_loses_nothing_that_is_kept,
    test_an_engine_that_hangs_holds_up_nothing,
    test_exclude_holds_for_what_comes_back,
    test_it_starts_again,
    test_keys_hold_at_other_nodes,
    test_patterns_that_overlap_mean_a_message_once,
    test_publish_says_what_becomes_of_it,
    test_stop_does_not_wait_for_an_engine_that_is_away,
    test_stop_sends_what_waits_and_says_farewell,
    test_systems_with_another_prefix_do_not_meet,
    test_the_engine_is_killed_and_comes_back,
    test_what_waits_for_the_engine_is_bounded,
)

__all__ = [
    "cluster",
    "plain",
    "stack",
    "test_300_clients_on_three_nodes_get_all_of_100_topics_once_and_in_order",
    "test_a_new_node_has_what_was_kept_and_gives_nobody_what_is_old",
    "test_a_node_is_killed_and_its_clients_go_on_elsewhere",
    "test_a_node_that_was_cut_off_catches_up",
    "test_a_rolling_restart_loses_nothing_that_is_kept",
    "test_an_engine_that_hangs_holds_up_nothing",
    "test_exclude_holds_for_what_comes_back",
    "test_it_starts_again",
    "test_keys_hold_at_other_nodes",
    "test_patterns_that_overlap_mean_a_message_once",
    "test_publish_says_what_becomes_of_it",
    "test_stop_does_not_wait_for_an_engine_that_is_away",
    "test_stop_sends_what_waits_and_says_farewell",
    "test_systems_with_another_prefix_do_not_meet",
    "test_the_engine_is_killed_and_comes_back",
    "test_what_waits_for_the_engine_is_bounded",
]

pytestmark = pytest.mark.skipif(PROGRAMS["nats"] is None, reason="needs nats-server")


@pytest.fixture
def engine(stack: ExitStack, tmp_path: Path) -> Engine:
    engine = Engine("nats", tmp_path / "nats").start()
    stack.callback(engine.close)
    return engine


class NatsClient:
    """What any program in any language could say to the server."""

    def __init__(self, engine: Engine) -> None:
        self.socket = socket.create_connection((HOST, engine.port), timeout=LIMIT)
        self.lines = self.socket.makefile("rb")
        assert self.lines.readline().startswith(b"INFO ")
        self.say('CONNECT {"verbose":false,"headers":true}')

    def say(self, line: str, payload: bytes | None = None) -> None:
        text = line.encode() if payload is None else f"{line} {len(payload)}\r\n".encode() + payload
        self.socket.sendall(text + b"\r\n")

    def settle(self) -> None:
        """What was said has reached the server."""
        self.say("PING")
        while self.lines.readline() != b"PONG\r\n":
            pass

    def ask(self, subject: str, question: dict[str, Any]) -> dict[str, Any]:
        """A request and its answer, both in JSON."""
        self.say("SUB answer 7")
        self.say(f"PUB {subject} answer", json.dumps(question).encode())
        while not (line := self.lines.readline()).startswith(b"MSG answer 7 "):
            assert line.strip() in (b"+OK", b"PING"), line
        answer: dict[str, Any] = json.loads(self.lines.read(int(line.split()[-1])))
        return answer

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def test_other_programs_may_publish_and_listen(stack: ExitStack, cluster: Cluster) -> None:
    node = cluster.node()
    crowd = make_crowd(stack, [node], 1, lambda _: ["p/v1.2", "k/1"])
    other = NatsClient(cluster.engine)
    stack.callback(other.close)
    other.say("SUB pyhv.t.> 1")
    other.settle()
    wait_until(lambda: node.ask("count", topic="p/v1.2") == 1)
    other.say("PUB pyhv.t.p.v1=2E2", b"nonsense")
    for _ in range(2):
        other.say("PUB pyhv.t.p.v1=2E2", b"1 0 0 t p/v1.2\nhello")
    other.say("PUB pyhv.k.k.1", b"1 0 0 t k/1\nkept")
    other.settle()
    crowd.until(lambda: crowd.total == 3)
    assert crowd.clients[0].got == {"p/v1.2": ["hello", "hello"], "k/1": ["kept"]}
    node.ask("publish", topic="caf\u00e9//x", msg="y")
    line = other.lines.readline()
    while not line.startswith(b"MSG pyhv.t.caf=C3=A9.=.x "):
        line = other.lines.readline()


def test_data_that_are_gone_are_told_as_a_gap(stack: ExitStack, cluster: Cluster) -> None:
    nodes, crowd, before = lose_data(stack, cluster, "store")

    def is_back(node: Node) -> bool:
        return node.states == ["connected", "lost", "connected"]

    for node in nodes:
        wait_until(partial(is_back, node))
    crowd.until(lambda: all(client.gaps == ["k/1"] for client in crowd.clients), what="they are told")
    nodes[1].ask("publish", topic="k/1", msg="0:1")
    crowd.until(lambda: all(client.got["k/1"] == ["0:0", "0:1"] for client in crowd.clients))
    late = Client()
    crowd.clients.append(late)
    late.join(nodes[0], "k/1", after=before)
    crowd.until(lambda: late.gaps == ["k/1"] and late.got["k/1"] == ["0:1"])


def test_more_than_the_engine_keeps_is_told_as_a_gap(stack: ExitStack, engine: Engine) -> None:
    cluster = Cluster(engine, stack, {"backplane_timeout": TIMEOUT, "backplane_history": 100}, KEEP)
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["k/1"])
    cluster.engine.kill()
    nodes[0].pause()
    cluster.engine.start()
    wait_until(lambda: connected(nodes[1]))
    begin_bursts(nodes[1:], ["k/1"], 1000)
    end_bursts(crowd, nodes[1:])
    crowd.until(lambda: len(crowd.clients[1].got["k/1"]) == 1000)
    nodes[0].resume()
    crowd.until(lambda: crowd.clients[0].got["k/1"][-1:] == ["0:999"])
    assert crowd.clients[0].gaps == ["k/1"]
    assert in_order(crowd.clients[0].got["k/1"]) == {"0": list(range(900, 1000))}


def test_without_jetstream_only_what_is_kept_is_missing(
    stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine("nats", tmp_path / "core", jetstream=False).start()
    stack.callback(engine.close)
    cluster = Cluster(engine, stack, {"backplane_timeout": TIMEOUT}, [])
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 2, lambda _: ["p/1"])
    nodes[0].ask("publish", topic="p/1", msg="0:0")
    crowd.until(lambda: crowd.clients[1].got["p/1"] == ["0:0"])
    server = plain(engine.url)
    is_connected(server)
    server.publish("p/1", "0:1")
    crowd.until(lambda: all(client.got["p/1"] == ["0:0", "0:1"] for client in crowd.clients))
    server.publish("k/1", "x")
    tick_until(lambda: server.states[-1] == "lost" and "need JetStream" in caplog.text, server)


def test_what_is_too_large_for_the_server_is_said(
    plain: Callable[..., Plain], engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    server = plain(engine.url)
    is_connected(server)
    server.publish("p/1", b"x" * (1 << 20))
    tick_until(lambda: "larger than the backplane's engine takes" in caplog.text, server)
    assert server.backplane_dropped == 1
    assert server.states == ["connected"]


@pytest.mark.parametrize("who", [{"user": "me", "password": "hunter2"}, {"token": "hunter2"}])
def test_passwords(
    stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture, who: dict[str, str]
) -> None:
    engine = Engine("nats", tmp_path / "secret", **who).start()  # type: ignore[arg-type]
    stack.callback(engine.close)
    is_connected(plain(engine.url))
    wrong = plain(engine.url.replace("hunter2", "swordfish"), backplane_timeout=0.5)
    tick_until(lambda: wrong.states == ["lost"], wrong)
    tick_until(lambda: "authorization" in caplog.text, wrong)
    assert "swordfish" not in caplog.text
    assert "hunter2" not in caplog.text


def test_a_user_may_be_confined_to_what_the_documentation_says(
    stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture
) -> None:
    configuration = tmp_path / "server.conf"
    publish = [
        "pyhv.>",
        "$JS.API.STREAM.*.pyhv",
        "$JS.API.CONSUMER.CREATE.pyhv.>",
        "$JS.API.CONSUMER.CREATE.pyhv",
        "$JS.FC.pyhv.>",
    ]
    rights = {"publish": publish, "subscribe": ["pyhv.>", "_INBOX.>"]}
    user = {"user": "me", "password": "hunter2", "permissions": rights}
    configuration.write_text(f"authorization {{ users: {json.dumps([user])} }}\n")
    engine = Engine("nats", tmp_path / "confined", more=["-c", str(configuration)]).start()
    stack.callback(engine.close)
    url = engine.url.replace("nats://", "nats://me:hunter2@")
    servers = [plain(url), plain(url)]
    for server in servers:
        is_connected(server)
        server.publish("p/1", "x")
        server.publish("k/1", "x")
    stranger = plain(url, backplane_prefix="other")
    tick_until(partial(is_lost, stranger), stranger)
    tick_until(lambda: "permissions violation" in caplog.text.lower(), stranger)
    assert all(server.states == ["connected"] for server in servers)


def test_a_file_with_credentials(
    stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture
) -> None:
    configuration, credentials = make_credentials(tmp_path / "keys")
    _, stranger = make_credentials(tmp_path / "other keys")
    engine = Engine("nats", tmp_path / "jwt", jetstream=False, more=["-c", str(configuration)]).start()
    stack.callback(engine.close)
    is_connected(plain(engine.url, backplane_credentials=credentials))
    for settings in ({}, {"backplane_credentials": stranger}):
        caplog.clear()
        wrong = plain(engine.url, **settings)
        tick_until(partial(is_lost, wrong), wrong)
        tick_until(lambda: "authorization" in caplog.text, wrong)


def is_lost(server: Plain) -> bool:
    return server.states == ["lost"]


def test_tls(stack: ExitStack, tmp_path: Path, plain: Callable[..., Plain], caplog: pytest.LogCaptureFixture) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    engine = Engine("nats", tmp_path / "tls", user="me", password="hunter2", certificates=certificates).start()
    stack.callback(engine.close)
    is_connected(plain(engine.url, backplane_ca_file=certificates.ca))
    is_connected(plain(engine.url, backplane_fingerprint=certificates.fingerprint))
    stranger = make_certificates(tmp_path / "others")
    settings: dict[str, Any]
    for settings in ({}, {"backplane_ca_file": stranger.ca}, {"backplane_fingerprint": "00" * 32}):
        caplog.clear()
        wrong = plain(engine.url, **settings)
        tick_until(partial(is_lost, wrong), wrong)
        tick_until(lambda: "certificate" in caplog.text, wrong)


def test_a_link_that_breaks_loses_and_doubles_nothing_that_is_kept(stack: ExitStack, cluster: Cluster) -> None:
    nodes = [cluster.node(), cluster.node()]
    crowd = make_crowd(stack, nodes, 4, lambda _: ["k/1"])
    begin_bursts(nodes, ["k/1"], 2000, seconds=0.002)

    def reached(goal: int) -> bool:
        return crowd.total > goal

    for step in range(1, 5):
        crowd.until(partial(reached, step * 1500))
        cluster.engine.restart()
    end_bursts(crowd, nodes)
    crowd.until(lambda: crowd.total >= 16_000, what="all has come")
    for client in crowd.clients:
        assert in_order(client.got["k/1"]) == {"0": list(range(2000)), "1": list(range(2000))}
        assert not client.gaps
    assert any(node.states.count("lost") for node in nodes)
