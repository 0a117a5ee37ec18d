"""Runs the conformance suite against pyHV's server and client: python -m compliance.run [--fast] [--side client]

For the server the suite is a client, for the client it is a server. Both sides run at the same time. The verdicts are
compared with expected-results.json; any difference, and any case that is missing, failed, not strict or not closed
cleanly, is printed and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

from compliance import verdicts
from compliance.verdicts import SIDES, Verdict

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
SUITE = [str(CACHE / "venv" / "bin" / "python"), "-I", "-W", "ignore", str(HERE / "suite.py")]

#: The whole protocol, its compression and no long message: what `make test` runs. Group 9 is about size and speed.
FAST_CASES = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*", "12.*", "13.*")
FAST_LOOPS = 4

PROGRESS = 60.0  # seconds between two lines about how far it is
FAULTS = 30  # most lines about cases
PATIENCE = 10.0  # seconds for a program to end once it is asked to


class Plan(NamedTuple):
    """What to run, and for how long at most."""

    cases: tuple[str, ...]
    loops: int | None  # cap on the messages of an echo loop; None: the suite's own 1000
    compression: str
    case_limit: float  # seconds for one case
    limit: float  # seconds for one side


class Outcome(NamedTuple):
    """What came of one side."""

    wanted: list[str]  # those that were to be run
    found: dict[str, Verdict]
    notes: list[str]  # what else went wrong
    results: dict[str, str]  # the suite's sentence about each case
    seconds: float


class Program:
    """A process of ours that does not outlive its `with` block. Its stderr is a log.

    It leads a session of its own: Ctrl-C in a terminal reaches only this program, which ends the others.
    """

    #: Those that run now. Added to and removed from in the threads of the two sides; ended all together by `main`.
    running: ClassVar[set[Program]] = set()

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        self._log = log.open("wb")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self.running.add(self)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.running.discard(self)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    def last_words(self) -> str:
        """How it ended, and the last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() or ["it said nothing"]
        return f"ended with status {self.process.returncode}: {lines[-1]} ({self.log})"

    def end(self) -> None:
        """Asks it to end. Any thread."""
        if self.process.poll() is None:
            self.process.terminate()

    def line(self) -> str:
        """The next line that it prints; empty, when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


def under_test(side: str, plan: Plan, *arguments: str) -> Program:
    """server.py or client.py, with the Python that runs this."""
    command = [sys.executable, str(HERE / f"{side}.py"), "--compression", plan.compression, *arguments]
    return Program(command, CACHE / f"{side}.log")


def suite(side: str, plan: Plan, **more: str) -> Program:
    """The suite, as the other side of `side`."""
    settings = {"cases": plan.cases, "loops": plan.loops, "case_limit": plan.case_limit, **more}
    return Program([*SUITE, json.dumps(settings)], CACHE / f"{side}-suite.log")


def examine(side: str, plan: Plan) -> Outcome:
    """Runs the suite against one side and returns what it says."""
    if side == "server":
        with under_test(side, plan) as server:
            url = server.line()
            with suite(side, plan, role="client", url=url) as fuzzer:
                return follow(side, plan, fuzzer, server, json.loads(fuzzer.line() or "{}"))
    with suite(side, plan, role="server") as fuzzer:
        start = json.loads(fuzzer.line() or "{}")
        with under_test(side, plan, start.get("url", "")) as client:
            threading.Thread(target=end_with, args=(client, fuzzer), daemon=True).start()
            return follow(side, plan, fuzzer, client, start)


def end_with(client: Program, fuzzer: Program) -> None:
    """Ends the suite's server once the client has ended, be it done or dead: the suite would wait for more."""
    client.process.wait()
    fuzzer.end()


def follow(side: str, plan: Plan, fuzzer: Program, subject: Program, start: dict[str, Any]) -> Outcome:
    """Reads the suite's verdicts until it ends."""
    notes: list[str] = []
    cases: dict[str, dict[str, Any]] = {}
    wanted = start.get("wanted", [])
    began = told = time.monotonic()

    def out_of_time() -> None:
        notes.append(f"not done after {plan.limit:.0f} s")
        fuzzer.process.kill()

    alarm = threading.Timer(plan.limit, out_of_time)
    alarm.start()
    try:
        while line := fuzzer.line():
            case = json.loads(line)
            cases[case["id"]] = case
            if time.monotonic() - told >= PROGRESS:
                told = time.monotonic()
                print(f"{side}: {len(cases)} of {len(wanted)} cases after {told - began:.0f} s", flush=True)
    finally:
        alarm.cancel()
    if not start:
        fuzzer.process.wait()
        notes.append(f"the suite {fuzzer.last_words()}")
    if side == "server" and subject.process.poll() is not None:
        notes.append(f"the server {subject.last_words()}")
    if side == "client":
        try:
            if subject.process.wait(PATIENCE) != 0:
                notes.append(f"the client {subject.last_words()}")
        except subprocess.TimeoutExpired:
            notes.append("the client did not end with the suite")
    return Outcome(
        wanted=wanted,
        found={number: Verdict(case["behavior"], case["behaviorClose"]) for number, case in cases.items()},
        notes=notes,
        results={number: f"{case['result']} {case['resultClose']}" for number, case in cases.items()},
        seconds=time.monotonic() - began,
    )


def complaints(side: str, plan: Plan, outcome: Outcome) -> list[str]:
    """Everything that is not as expected, in lines."""
    expected = verdicts.load(side)
    lines = list(outcome.notes)
    wanted = {*outcome.wanted, *verdicts.matching(expected, plan.cases)}
    if not wanted:
        lines.append(f"no case matches {' '.join(plan.cases)}")
    faults = verdicts.faults(expected, outcome.found, wanted)
    for fault in faults[:FAULTS]:
        number = fault.partition(":")[0]
        lines.append(f"{fault}. {outcome.results.get(number, '')}".rstrip())
    if len(faults) > FAULTS:
        lines.append(f"and {len(faults) - FAULTS} more")
    return lines


def options_from(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="compliance", description="The conformance suite, on both sides of pyHV.")
    parser.add_argument("--fast", action="store_true", help="without group 9, and with short echo loops")
    parser.add_argument("--side", choices=SIDES, help="only this one")
    parser.add_argument("--cases", nargs="+", metavar="PATTERN", help="only these: 1.* 6.4.1")
    parser.add_argument("--loops", type=int, help="most messages of an echo loop (1000; with --fast 4)")
    parser.add_argument("--compression", choices=["shared", "context"], default="shared")
    parser.add_argument("--limit", type=float, help="seconds for a side (7200; with --fast 240)")
    parser.add_argument("--record", action="store_true", help="write the verdicts of a run of everything as expected")
    options = parser.parse_args(arguments)
    if options.record and (options.side or options.cases or options.fast):
        parser.error("--record is for all cases of both sides")
    return options


def main() -> int:
    """The exit status: 0 where everything is as expected."""
    options = options_from()
    subprocess.run(["sh", str(HERE / "setup.sh")], check=True, env={"PYTHON": sys.executable, **os.environ})
    plan = Plan(
        cases=tuple(options.cases or (FAST_CASES if options.fast else ("*",))),
        loops=options.loops or (FAST_LOOPS if options.fast else None),
        compression=options.compression,
        # The longest time that a case gives the peer is 480 s.
        case_limit=30.0 if options.fast else 500.0,
        limit=options.limit or (240.0 if options.fast else 7200.0),
    )
    sides = [options.side] if options.side else list(SIDES)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ThreadPoolExecutor(len(sides)) as pool:
        try:
            outcomes = dict(zip(sides, pool.map(lambda side: examine(side, plan), sides), strict=True))
        except BaseException:
            # Or the pool would wait for its threads, and these for the programs.
            for program in list(Program.running):
                program.end()
            raise
    if options.record:
        verdicts.save({side: outcome.found for side, outcome in outcomes.items()})
    status = 0
    for side, outcome in outcomes.items():
        print(f"{side}: {verdicts.summary(outcome.found)}, {len(outcome.found)} cases in {outcome.seconds:.0f} s")
        for line in complaints(side, plan, outcome):
            print(f"{side}: {line}")
            status = 1
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
