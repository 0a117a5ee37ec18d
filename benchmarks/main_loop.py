"""A program that owns its main loop, at 60 Hz: python benchmarks/main_loop.py [--cases echo] [--clients 1000]

Each peer runs frames of some milliseconds of Python with a WebSocket server beside them (peers/frames.py): alone, with
clients that each send a message per frame and get it echoed, with a broadcast of 200 bytes per frame to all of them,
and as a crowd: many idle connections, and a tenth as many more (or --active) that are active. What the network costs is
the difference to the frames alone, measured in the same pass. Prints a Markdown table; stores nothing: `run.py` does.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import report
from harness.cases import BENCHMARKS, LIMIT, TOOLS, Peer
from harness.machine import allowed_files
from harness.measure import GENERATOR_GRACE, Cores, Window, choose_cores, wait_for_quiet
from harness.memory import REQUEST, WARM_CONNECTIONS, settled
from harness.process import Helper, HelperError, cpu_seconds, free_port
from harness.summary import usable

PEERS = (
    # The same frames without Python, and the sockets pumped with nothing but the system calls: what the kernel takes.
    Peer(LIMIT, "", ()),
    Peer("pyhv", "frames_pyhv.py", ("pyhv",)),
    Peer("picows-thread", "frames_picows.py", ("picows", "uvloop"), ("thread",)),
    Peer("picows-pumped", "frames_picows.py", ("picows", "uvloop"), ("pumped",)),
    Peer("websockets-thread", "frames_websockets.py", ("websockets", "uvloop")),
)
IDLE, ECHO, BROADCAST, CROWD = "idle", "echo", "broadcast", "crowd"
CASES = (IDLE, ECHO, BROADCAST, CROWD)
#: Who does not take part. In a closed loop of over a thousand clients, one pass of libuv's loop does not end: it
#: answers, and is sent the next messages meanwhile. websockets takes too long to accept the crowd. The limit keeps
#: nothing for an idle connection.
LEFT_OUT = {CROWD: (LIMIT, "picows-pumped", "websockets-thread")}
#: Connections from one address of the client side: fewer than the ports that Linux has for them by default.
PER_ADDRESS = 20_000
#: Of Linux's <linux/in.h>; Python has the name from 3.12 on.
IP_BIND_ADDRESS_NO_PORT = 24
#: Descriptors that a process needs besides those of the crowd.
SPARE_FILES = 200
#: The generator outlasts the server's measurement: warm-up, settling, and a second to spare.
LONGER = 3.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The command line."""

    cases: list[str]
    peers: list[str]
    clients: int
    crowd: int
    active: int
    seconds: float
    repeat: int
    patience: float
    json: Path | None


def options_from(arguments: list[str]) -> Options:
    """The command line, with names checked against what there is."""
    parser = argparse.ArgumentParser(description="What a server costs a main loop of 60 frames a second.")
    parser.add_argument("--cases", default=",".join(CASES), help=f"comma-separated, of: {', '.join(CASES)}")
    known = [peer.name for peer in PEERS]
    parser.add_argument("--peers", default=",".join(known), help=f"comma-separated, of: {', '.join(known)}")
    parser.add_argument("--clients", type=int, default=1000, help="clients of echo and broadcast (1000)")
    parser.add_argument("--crowd", type=int, default=50_000, help="idle connections of the crowd (50000)")
    parser.add_argument("--active", type=int, help="active ones beside them (a tenth of them)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time measured per row (5)")
    parser.add_argument("--repeat", type=int, default=3, help="passes over all rows (3)")
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait before a row for a quiet machine (0)"
    )
    parser.add_argument("--json", type=Path, help="a file for all rows")
    given = parser.parse_args(arguments)
    cases, peers = given.cases.split(","), given.peers.split(",")
    for name in [name for name in cases if name not in CASES] + [name for name in peers if name not in known]:
        parser.error(f"{name!r} is none of {', '.join([*CASES, *known])}")
    # The server holds the idle ones and the active ones.
    room = allowed_files() - SPARE_FILES
    most = room * 10 // 11 if given.active is None else room - given.active
    crowd = min(given.crowd, most) if CROWD in cases else 0
    active = crowd // 10 if given.active is None else given.active
    if crowd < given.crowd and CROWD in cases:
        print(f"a crowd of {crowd:,} instead of {given.crowd:,}: the limit of open files", file=sys.stderr)
    return Options(cases, peers, given.clients, crowd, active, given.seconds, given.repeat, given.patience, given.json)


def idle_connections(port: int, count: int, opened: ExitStack) -> None:
    """Opens WebSockets that stay silent, from several addresses: one has not ports enough."""
    for number in range(count):
        connection = opened.enter_context(socket.socket())
        connection.settimeout(20)
        # The port is chosen when connecting: those of a run before, in TIME_WAIT, were to another port of a server.
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
        connection.connect(("127.0.0.1", port))
        connection.sendall(REQUEST)
        if not connection.recv(4096).startswith(b"HTTP/1.1 101 "):
            raise HelperError(f"connection {number}: handshake refused")


def command_of(peer: Peer, port: int, case: str, clients: int, seconds: float) -> list[str]:
    """The command line that runs the frames of a peer."""
    if peer.name == LIMIT:
        mode = "listen" if case == BROADCAST else "echo"
        return [str(TOOLS / "wsframes"), *words_of(port=port, mode=mode, clients=clients, seconds=seconds)]
    mode = BROADCAST if case == BROADCAST else ECHO
    script = str(BENCHMARKS / "peers" / peer.script)
    return [sys.executable, script, str(port), mode, str(clients), str(seconds), *peer.arguments]


def words_of(**flags: object) -> list[str]:
    """Flags as the tools take them."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def measure(peer: Peer, case: str, options: Options, cores: Cores) -> Row:
    """One peer in one case: its figures."""
    port = free_port()
    active = {IDLE: 0, CROWD: options.active}.get(case, options.clients)
    total = active + (options.crowd if case == CROWD else 0)
    command = command_of(peer, port, case, total, options.seconds)
    row: Row = {}
    patience = options.seconds + LONGER + GENERATOR_GRACE
    with ExitStack() as stack:
        server = stack.enter_context(Helper(command, cores.server, stdout=subprocess.PIPE))
        server.wait_for_port(port)
        if case == CROWD:
            # What a server allocates once is not counted.
            idle_connections(port, WARM_CONNECTIONS, stack)
            before = settled(server)
            idle_connections(port, options.crowd, stack)
            row["idle_bytes"] = round((settled(server) - before) / options.crowd)
        window = Window(server)
        if not active:
            return row | figures(server, patience) | window.shares(0.0)
        size = 200 if case == BROADCAST else 64
        mode = "listen" if case == BROADCAST else "echo"
        words = words_of(port=port, mode=mode, connections=active, size=size, seconds=options.seconds + LONGER)
        load = [str(TOOLS / "wsload"), *words]
        generator = stack.enter_context(Helper(load, cores.generator, stdout=subprocess.PIPE))
        try:
            row |= figures(server, patience)
            row |= window.shares(cpu_seconds(generator.process.pid))
        except HelperError as error:
            # Clients that never came are the generator's to explain.
            raise HelperError(generator.complaint() if generator.process.poll() else str(error)) from None
        try:
            output, _ = generator.process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            raise HelperError("the generator does not end") from None
        if generator.process.returncode:
            raise HelperError(generator.complaint())
        sent = json.loads(output)
        return row | {"msgs_per_s": sent["msgs_per_s"], "p50_us": sent["p50_us"], "p99_us": sent["p99_us"]}


def figures(server: Helper, patience: float) -> Row:
    """The line that a frames program prints when it has measured."""
    assert server.process.stdout is not None  # Helper was given a pipe
    if not select.select([server.process.stdout], [], [], patience)[0]:
        raise HelperError("the clients are not there, or the frames do not end")
    line = server.process.stdout.readline()
    if not line:
        server.process.wait()
        raise HelperError(f"server ended: {server.complaint()}")
    row: Row = json.loads(line)
    return row


def middle(rows: list[Row], key: str) -> float:
    """The median of a figure over the repeats."""
    found: float = median(row["result"][key] for row in rows)
    return found


def over(rows: list[Row], idle: list[Row], key: str) -> float:
    """What a figure exceeds that of the frames alone by; noise may put it below."""
    return max(0.0, middle(rows, key) - middle(idle, key))


def table(rows: list[Row], settings: Row) -> str:
    """All cases as Markdown; `settings` are the numbers of clients that the rows were measured with."""
    clients, crowd, active = settings["clients"], settings["crowd"], settings["active"]
    titles = {
        ECHO: f"{clients:,} messages each way per frame",
        BROADCAST: f"200 B to {clients:,} per frame",
        CROWD: f"{crowd:,} idle, {active:,} more active",
    }
    lines = []
    document = {"rows": rows}
    for case in [case for case in CASES if case in titles and any(row["case"] == case for row in rows)]:
        for peer in dict.fromkeys(row["peer"] for row in rows if row["case"] == case):
            mine, alone = usable(document, case, peer), usable(document, IDLE, peer)
            if not mine or not alone:
                lines.append([titles[case], peer, *["failed"] * 6])
                continue
            echo_p99 = f"{middle(mine, 'p99_us') / 1e3:.1f} ms" if case != BROADCAST else "-"
            lines.append(
                [
                    titles[case],
                    peer + f" {report.DISTURBED}" * all(row["disturbed"] for row in mine),
                    f"{over(mine, alone, 'process_ms'):.2f} ms",
                    f"{over(mine, alone, 'network_ms'):.2f} ms",
                    echo_p99,
                    f"{middle(mine, 'end_p99_ms'):.1f} ms ({middle(alone, 'end_p99_ms'):.1f})",
                    f"{middle(mine, 'msgs_per_s') / 60:,.0f}",
                    f"{middle(mine, 'idle_bytes'):,.0f} B" if case == CROWD else "-",
                ]
            )
    header = ["case", "peer", "CPU of the process per frame, over idle", "of it on the main thread", "echo p99"]
    header += ["end of frame p99 (idle)", "messages received per frame", "memory per idle connection"]
    return report.table(header, lines)


def choose_peers(names: list[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and why the others cannot."""
    chosen = [peer for peer in PEERS if peer.name in names]
    skipped = {peer.name: why for peer in chosen if (why := peer.why_not()) is not None}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}", file=sys.stderr)
    return [peer for peer in chosen if peer.name not in skipped], skipped


def collect(options: Options, peers: list[Peer], cores: Cores) -> list[Row]:
    """All rows, as results store them; the peers take turns within a case, cases within a repeat."""
    rows = []
    for repeat in range(options.repeat):
        for case in dict.fromkeys([IDLE, *options.cases]):
            for peer in [peer for peer in peers if peer.name not in LEFT_OUT.get(case, ())]:
                wait_for_quiet(options.patience)
                row: Row = {"repeat": repeat, "case": case, "peer": peer.name}
                try:
                    result = measure(peer, case, options, cores)
                except (HelperError, OSError) as error:
                    row["error"] = str(error)
                else:
                    row |= {"disturbed": result["disturbed"], "result": result}
                rows.append(row)
                print(progress(row), file=sys.stderr, flush=True)
    return rows


def progress(row: Row) -> str:
    """One row as one line for whoever watches."""
    head = f"{row['repeat'] + 1}  {row['case']:14s} {row['peer']:18s} "
    if "error" in row:
        return head + f"FAILED: {row['error']}"
    result = row["result"]
    line = head + f"{result['process_ms']:.2f} ms of CPU per frame, {result['network_ms']:.2f} on the main thread"
    line += f"  end p50 {result['end_p50_ms']:.1f} p99 {result['end_p99_ms']:.1f} ms"
    if "p99_us" in result:
        line += f"  echo p99 {result['p99_us'] / 1e3:.1f} ms  {result['msgs_per_s'] / 60:,.0f} messages per frame"
    return line + ("  DISTURBED" if row["disturbed"] else "")


def main() -> int:
    """Measures and prints; 1 when a row failed."""
    options = options_from(sys.argv[1:])
    peers, _ = choose_peers(options.peers)
    rows = collect(options, peers, choose_cores())
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, vars(options)))
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
