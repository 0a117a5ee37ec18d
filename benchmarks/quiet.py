"""What a server with nothing to do costs: python benchmarks/quiet.py [--clients 1000] [--seconds 120] [--json FILE]

A server process holds so many WebSockets, which answer its pings and say nothing else (peers/quiet_pyhv.py). Printed
is the CPU time of all its threads, as a share of one core: without clients, with them, and with the pings that are the
default, for a program that waits inside `tick()` and for one that ticks 60 times a second.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import report
from harness.cases import BENCHMARKS
from harness.machine import allowed_files
from harness.measure import Cores, choose_cores
from harness.memory import open_connection
from harness.process import Helper, HelperError, free_port

#: The default of `start()`, in seconds.
PINGS = 20.0
#: What is measured: its title, how the program ticks, seconds between pings (0: none), whether there are clients.
ROWS = (
    ("waits in tick(), no clients", "wait", 0.0, False),
    ("waits in tick(), pings off", "wait", 0.0, True),
    ("waits in tick()", "wait", PINGS, True),
    ("ticks 60 times a second, no clients", "60hz", 0.0, False),
    ("ticks 60 times a second", "60hz", PINGS, True),
)
PATIENCE = 20.0


def answer_pings(clients: list[socket.socket], server: Helper, seconds: float) -> float:
    """Answers every ping until the server has printed its figure, and returns that."""
    assert server.process.stdout is not None  # Helper was given a pipe
    with selectors.DefaultSelector() as selector:
        selector.register(server.process.stdout, selectors.EVENT_READ)
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        while True:
            ready = selector.select(seconds + PATIENCE)
            if not ready:
                raise HelperError("the server prints nothing")
            for key, _ in ready:
                if not isinstance(key.fileobj, socket.socket):
                    line = server.process.stdout.readline()
                    if not line:
                        raise HelperError(f"server ended: {server.complaint()}")
                    return float(line)
                frame = key.fileobj.recv(4096)
                if len(frame) < 2 or frame[0] != 0x89 or len(frame) != 2 + frame[1]:
                    raise HelperError(f"not a ping: {frame[:20]!r}")
                # Masked with zeros, which is a mask too.
                key.fileobj.sendall(bytes((0x8A, 0x80 | frame[1])) + bytes(4) + frame[2:])


def measure(how: str, pings: float, clients: int, seconds: float, cores: Cores) -> float:
    """The share of a core, in percent."""
    port = free_port()
    script = str(BENCHMARKS / "peers" / "quiet_pyhv.py")
    command = [sys.executable, script, str(port), how, str(pings), str(clients), str(seconds)]
    with ExitStack() as stack:
        server = stack.enter_context(Helper(command, cores.server, stdout=subprocess.PIPE))
        server.wait_for_port(port)
        opened = [stack.enter_context(open_connection(port)) for _ in range(clients)]
        return answer_pings(opened, server, seconds) / seconds * 100


def main() -> int:
    """Measures and prints; 1 when a row failed."""
    parser = argparse.ArgumentParser(description="What a server with nothing to do costs.")
    parser.add_argument("--clients", type=int, default=1000, help="quiet clients (1000)")
    parser.add_argument("--seconds", type=float, default=120.0, help="time measured per row (120)")
    parser.add_argument("--json", type=Path, help="a file for all rows")
    options = parser.parse_args()
    allowed_files()
    cores, failed = choose_cores(), False
    rows: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    for title, how, pings, there in ROWS:
        clients = options.clients if there else 0
        try:
            share = measure(how, pings, clients, options.seconds, cores)
        except (HelperError, OSError) as error:
            failed = True
            print(f"{title}: FAILED: {error}", file=sys.stderr)
            continue
        rows.append({"case": title, "clients": clients, "ping_interval": pings or None, "percent": round(share, 4)})
        lines.append([title, f"{clients:,}", f"{pings:g}" if pings else "-", f"{share:.3f} %"])
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    header = ["the program", "clients", "seconds between pings", "CPU, of one core"]
    print(report.table(header, lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
