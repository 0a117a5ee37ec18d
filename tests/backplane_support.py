"""What the tests of a backplane share: engines, nodes as processes of their own, and many clients in one loop."""

from __future__ import annotations

import itertools
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pyhv import HvWebSocketClient, Reconnect
from support import HOST, LIMIT, python_environment, tick_until, wait_until
from support_tls import Certificates

# Debian has servers where only root's PATH looks.
PATH = os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin"
PROGRAMS = {name: shutil.which(f"{name}-server", path=PATH) for name in ("nats", "redis")}
IP = shutil.which("ip", path=PATH + os.pathsep + "/sbin")

NODE = Path(__file__).parent / "backplane_node.py"


def free_port(host: str = HOST) -> int:
    """A port that nothing listens on; a server that must come back on the same one cannot be given 0.

    Below those that systems give to connections (Linux: from 32768 on): one of these may be taken in between.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((host, port))
            return port


class Engine:
    """A nats-server or redis-server with a folder of its own, on a port that it keeps when it is started again."""

    def __init__(
        self,
        kind: str,
        folder: Path,
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        certificates: Certificates | None = None,
        jetstream: bool = True,
        host: str = HOST,
        more: Sequence[str] = (),
    ) -> None:
        """`user`, `password`, `token`: what clients have to say. `jetstream`: of NATS. `more`: further arguments."""
        self.kind, self.folder, self.host = kind, folder, host
        self.user, self.password, self.token, self.certificates = user, password, token, certificates
        self.jetstream, self.more = jetstream, more
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """For `start(backplane=...)`."""
        return self.url_at(HOST)

    def url_at(self, host: str) -> str:
        scheme = {"nats": ("nats", "tls"), "redis": ("redis", "rediss")}[self.kind][self.certificates is not None]
        who = ""
        if self.token:
            who = f"{self.token}@"
        elif self.password:
            who = f"{self.user or ''}:{self.password}@"
        return f"{scheme}://{who}{host}:{self.port}"

    def start(self) -> Engine:
        """Starts it, with what it had stored; returns when it listens."""
        assert self.process is None
        program = PROGRAMS[self.kind]
        assert program is not None
        command = [program, *(self._nats() if self.kind == "nats" else self._redis()), *self.more]
        with (self.folder / "output").open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(self._listens, what=f"{self.kind} listens")
        return self

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "output").read_text()
        try:
            socket.create_connection((HOST, self.port), timeout=LIMIT).close()
        except OSError:
            return False
        return True

    def _nats(self) -> list[str]:
        options = ["-a", self.host, "-p", str(self.port)]
        if self.jetstream:
            options += ["-js", "-sd", str(self.folder / "store")]
        if self.token:
            options += ["--auth", self.token]
        elif self.password:
            options += ["--user", self.user or "", "--pass", self.password]
        if self.certificates:
            options += ["--tls", "--tlscert", str(self.certificates.cert), "--tlskey", str(self.certificates.key)]
        return options

    def _redis(self) -> list[str]:
        # What is appended is there again after a kill: the page cache has it.
        options = ["--bind", self.host, "--dir", str(self.folder), "--appendonly", "yes", "--protected-mode", "no"]
        if self.certificates:
            options += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            options += ["--tls-cert-file", str(self.certificates.cert), "--tls-key-file", str(self.certificates.key)]
            options += ["--tls-ca-cert-file", str(self.certificates.ca)]
        else:
            options += ["--port", str(self.port)]
        if self.password and self.user:
            options += ["--user", self.user, "on", f">{self.password}", "~*", "&*", "+@all", "--user", "default", "off"]
        elif self.password:
            options += ["--requirepass", self.password]
        return options

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Ends it without a word; what it has stored stays."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(LIMIT)
        self.process = None

    def restart(self) -> None:
        """Kills it and starts it again."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """It keeps its connections and does nothing."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None:
            self.kill()


class Node:
    """A process with a pyHV server that is told what to do, line by line (backplane_node.py)."""

    def __init__(
        self,
        settings: dict[str, Any],
        *,
        keep: Sequence[dict[str, Any]] = (),
        prefix: Sequence[str] = (),
        host: str = HOST,
    ) -> None:
        """`settings`: of `start`. `keep`: arguments of `keep`. `prefix`: a command that runs the process."""
        self.host = host
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(NODE), json.dumps({"settings": settings, "keep": list(keep), "host": host})],
            env=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read, name="node-reader", daemon=True).start()
        try:
            self.port: int = self._answer()["port"]
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _answer(self) -> dict[str, Any]:
        answer = self._lines.get(timeout=LIMIT * 3)
        assert answer is not None, "the node has ended"
        assert "error" not in answer, answer["error"]
        return answer

    @property
    def url(self) -> str:
        return f"ws://{self.host}:{self.port}/"

    def begin(self, do: str, **arguments: Any) -> None:
        """Asks; `end` has the answer. Between them others may be asked."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()

    def end(self) -> Any:
        return self._answer()["answer"]

    def ready(self) -> bool:
        """Whether `end` would not wait."""
        return not self._lines.empty()

    def ask(self, do: str, **arguments: Any) -> Any:
        self.begin(do, **arguments)
        return self.end()

    @property
    def states(self) -> list[str]:
        """What `on_backplane` was told so far."""
        states: list[str] = self.ask("states")
        return states

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT)

    def stop(self) -> None:
        """As a program ends that does it well."""
        self.ask("stop")
        self.process.wait(LIMIT)

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it however it is."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LIMIT)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                with suppress(OSError):  # something was left to be written to it
                    pipe.close()


class Cluster:
    """An engine and its nodes."""

    def __init__(
        self, engine: Engine, stack: ExitStack, settings: dict[str, Any], keep: Sequence[dict[str, Any]]
    ) -> None:
        self.engine, self.stack, self.settings, self.keep = engine, stack, settings, keep
        self.nodes: list[Node] = []

    def node(self, *, connected: bool = True, prefix: Sequence[str] = (), host: str = HOST, **settings: Any) -> Node:
        """Starts one more; `connected`: and waits until it has the engine."""
        settings = {"backplane": self.engine.url, **self.settings, **settings}
        node = Node(settings, keep=self.keep, prefix=prefix, host=host)
        self.stack.callback(node.close)
        self.nodes.append(node)
        if connected:
            wait_until(lambda: node.states[-1:] == ["connected"], what="the node has the engine")
        return node


class Client(HvWebSocketClient):
    """Subscribes to topics and holds what comes."""

    def __init__(self) -> None:
        self.got: dict[str, list[str]] = defaultdict(list)
        self.gaps: list[str] = []
        self.total = 0

    def on_topic(self, topic: str, msg: str | bytes) -> None:
        assert isinstance(msg, str)
        self.got[topic].append(msg)
        self.total += 1

    def on_topic_gap(self, topic: str) -> None:
        self.gaps.append(topic)

    def join(self, node: Node, *topics: str, after: str | None = None) -> None:
        for topic in topics:
            self.subscribe(topic, after=after) if after else self.subscribe(topic)
        self.go(node)

    def go(self, node: Node) -> None:
        self.connect(node.url, topics=True, reconnect=Reconnect(first=0.02, max_delay=0.2))


class Crowd:
    """Many clients that one loop ticks."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients

    def tick(self, timeout: float | None = 0.0) -> int:
        ran = sum(client.tick() for client in self.clients)
        if not ran and timeout and self.clients:
            return self.clients[0].tick(timeout)
        return ran

    def until(self, condition: Callable[[], Any], *, limit: float = LIMIT * 3, what: str | None = None) -> Any:
        return tick_until(condition, self, limit=limit, what=what)

    def move(self, client: Client, node: Node) -> None:
        """Has one of them, connected or not, go on at another node."""
        client.close()

        def goes() -> bool:
            try:
                client.go(node)
            except RuntimeError:  # not before its end was told
                return False
            return True

        self.until(goes, what="it has ended")

    @property
    def total(self) -> int:
        return sum(client.total for client in self.clients)

    def close(self) -> None:
        for client in self.clients:
            client.close()


def make_crowd(stack: ExitStack, nodes: Sequence[Node], count: int, topics: Callable[[int], Sequence[str]]) -> Crowd:
    """`count` clients, spread over the nodes; client number i subscribes to `topics(i)`. All are subscribed."""
    crowd = Crowd([Client() for _ in range(count)])
    stack.callback(crowd.close)
    for number, client in enumerate(crowd.clients):
        client.join(nodes[number % len(nodes)], *topics(number))
    everybody = list(enumerate(crowd.clients))
    crowd.until(
        lambda: all(client.topic_position(topic) for number, client in everybody for topic in topics(number)),
        what="all are subscribed",
    )
    return crowd


def in_order(got: Sequence[str]) -> dict[str, list[int]]:
    """Messages "publisher:number" by publisher; each publisher's have to come in its order, each once."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for text in got:
        publisher, number = text.split(":")
        numbers[publisher].append(int(number))
    for publisher, mine in numbers.items():
        assert all(a < b for a, b in itertools.pairwise(mine)), f"{publisher}: out of order or twice: {mine}"
    return numbers


@contextmanager
def namespace(number: int) -> Iterator[tuple[list[str], str, str, Callable[[bool], None]]]:
    """A network of its own with two cables to this one: to the engine and to clients. Needs root.

    Yields the command that runs a program there, this side's address for the engine, that side's for clients, and
    what pulls the engine's cable (False) or puts it back (True).
    """
    assert IP is not None
    name = f"pyhv{os.getpid() % 100_000}n{number}"
    run = [IP, "netns", "exec", name]

    def ip(*arguments: str) -> None:
        subprocess.run([str(IP), *arguments], check=True, capture_output=True)

    # TEST-NET-2 and TEST-NET-3 (RFC 5737): nobody's.
    cables = (
        (f"hve{os.getpid() % 100_000}n{number}", "198.51.100"),
        (f"hvc{os.getpid() % 100_000}n{number}", "203.0.113"),
    )
    with ExitStack() as stack:
        ip("netns", "add", name)
        stack.callback(ip, "netns", "del", name)
        ip("netns", "exec", name, IP, "link", "set", "lo", "up")
        for cable, net in cables:
            ip("link", "add", cable, "type", "veth", "peer", "name", "p" + cable)
            stack.callback(subprocess.run, [IP, "link", "del", cable], capture_output=True, check=False)
            ip("link", "set", "p" + cable, "netns", name)
            ip("addr", "add", f"{net}.{number * 4 + 1}/30", "dev", cable)
            ip("link", "set", cable, "up")
            ip("netns", "exec", name, IP, "addr", "add", f"{net}.{number * 4 + 2}/30", "dev", "p" + cable)
            ip("netns", "exec", name, IP, "link", "set", "p" + cable, "up")

        def plug(there: bool) -> None:
            ip("link", "set", cables[0][0], "up" if there else "down")

        yield run, f"198.51.100.{number * 4 + 1}", f"203.0.113.{number * 4 + 2}", plug


def may_make_namespaces() -> bool:
    """Whether this user may."""
    if IP is None:
        return False
    name = f"pyhvtry{os.getpid() % 100_000}"
    if subprocess.run([IP, "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    cable = f"hvt{os.getpid() % 100_000}"
    made = subprocess.run([IP, "link", "add", cable, "type", "veth"], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run([IP, "link", "del", cable], capture_output=True, check=False)
    subprocess.run([IP, "netns", "del", name], capture_output=True, check=False)
    return made
