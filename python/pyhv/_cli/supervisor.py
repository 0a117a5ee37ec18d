"""The supervisor of `pyhv run --workers N`: it binds the port, starts the workers, and sees to it that there are N.

It serves nobody and never imports the program, so it has no threads, little memory, and nothing in it that could crash.
Workers are new processes that inherit the listening sockets, not forks: a program may have threads as soon as it is
imported, and after a restart it is imported anew.

Each worker has a listening socket of its own for the same port (SO_REUSEPORT), and Linux shares clients out by a hash:
of 1,000 each of four workers gets 220 to 280. At one socket for all, whoever is awake takes what comes: from 12 to 660.
What waits at a socket that is closed is lost, so it is the supervisor who holds them all, as long as it lives, and a
worker's successor goes on with the same. While there is none, for as long as a start and a pause take, a share of the
new clients waits. At one socket the others serve them: --one-socket, systemd's, and where SO_REUSEPORT does not share.

| a worker is | until | then |
|---|---|---|
| starting | it says that it is ready | ready |
| | it ends, or start_timeout | a new one after a pause; at a rolling restart the old one stays |
| ready | it ends by itself | a new one after a pause |
| | its successor is ready, or all are to stop | leaving |
| leaving | it ends, or its time is over and it is killed | - |
"""

from __future__ import annotations

import json
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from pyhv._cli.output import Output, clock
from pyhv._cli.program import RESTART, STOP, Spec, notify
from pyhv._cli.text import printable

__all__ = ["Supervisor", "bind"]

#: Connections that the kernel completes before they are accepted; the engine sets the same.
_BACKLOG = 4096

#: Pauses before a worker is started again: the first, and the longest. Half of each is random.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
#: Seconds for which a worker has to have been ready for pauses to begin anew.
_STAYED = 5.0
#: Workers in a row that end without having been ready, after which it gives up, unless one ever was.
_ATTEMPTS = 5
#: Seconds beyond its time after which a worker that is to end is killed.
_GRACE = 2.0

_COMMANDS = {STOP: b"s", RESTART: b"r"}


def bind(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Listening sockets for all addresses of a host, with one port. Raises OSError."""
    made: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            each = socket.socket(family, kind, protocol)
            made.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = made[0].getsockname()[1] if port == 0 and len(made) > 1 else port
            each.bind((address[0], chosen, *address[2:]))
            each.listen(_BACKLOG)
    except OSError:
        for each in made:
            each.close()
        raise
    return made


@dataclass(eq=False)
class _Worker:
    """A process."""

    slot: _Slot
    process: subprocess.Popen[bytes]
    #: Our ends of the two pipes; None once closed.
    status: int | None
    orders: int | None
    #: When it is killed, if it has not come on: to being ready, or to its end.
    deadline: float | None
    ready_at: float | None = None
    leaving: bool = False
    said: bytes = b""
    error: str = ""
    final: bool = False

    @property
    def name(self) -> str:
        return f"worker {self.slot.number} (pid {self.process.pid})"

    def tell(self, code: int) -> None:
        self.leaving = True
        if self.orders is not None:
            # Broken: it has ended by itself.
            with suppress(BrokenPipeError):
                os.write(self.orders, _COMMANDS[code])


@dataclass(eq=False)
class _Slot:
    """One of N."""

    number: int
    sockets: Sequence[socket.socket]
    tls_sockets: Sequence[socket.socket]
    #: Who serves there.
    worker: _Worker | None = None
    #: Failures in a row.
    failures: int = 0
    #: When the next one is started.
    due: float | None = None


@dataclass
class Supervisor:
    """Runs the workers until it is told to stop.

    :param sockets: for each slot: those for http, and those for https.
    """

    spec: Spec
    sockets: Sequence[tuple[Sequence[socket.socket], Sequence[socket.socket]]]
    start_timeout: float
    out: Output
    _slots: list[_Slot] = field(default_factory=list)
    #: All processes that there are.
    _workers: list[_Worker] = field(default_factory=list)
    _signals: deque[int] = field(default_factory=deque)
    #: Those that a rolling restart has still to come to, and the new worker that it waits for, or the old one.
    _rolling: deque[_Slot] = field(default_factory=deque)
    _waits_for: _Worker | None = None
    _restarting: bool = False
    _stopping: bool = False
    _status: int = 0
    #: Some worker was ready at some time.
    _ever_ready: bool = False
    _failed: int = 0
    _has_terminal: bool = False

    def run(self) -> int:
        """Returns the exit status."""
        self._has_terminal = _has_terminal()
        pairs = enumerate(self.sockets, 1)
        self._slots = [_Slot(number, http, https) for number, (http, https) in pairs]
        # One first: what is wrong with the program is then said once.
        self._slots[0].due = time.monotonic()
        try:
            with self._catching() as woken:
                while self._workers or any(slot.due is not None for slot in self._slots):
                    self._wait(woken)
                    while self._signals:
                        self._signalled(self._signals.popleft())
                    for worker in list(self._workers):
                        self._look_at(worker)
                    self._roll()
                    self._start_due()
        finally:
            self._kill_all()
        return self._status

    # Waiting

    @contextmanager
    def _catching(self) -> Iterator[int]:
        """Signals are noted, and wake the wait by a descriptor."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)

        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.append(number)

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, note) for number in numbers}
        woken_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(woken_before)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _wait(self, woken: int) -> None:
        moments = [slot.due for slot in self._slots if slot.due is not None]
        moments += [worker.deadline for worker in self._workers if worker.deadline is not None]
        left = max(0.0, min(moments) - time.monotonic()) if moments else None
        ready = _readable([woken, *(worker.status for worker in self._workers)], 0.0 if self._signals else left)
        if woken in ready:
            os.read(woken, 4096)
        for worker in self._workers:
            if worker.status in ready:
                self._hear(worker)

    # What happens

    def _signalled(self, number: int) -> None:
        if number == signal.SIGCHLD:
            return  # every process is looked at anyway
        if number == signal.SIGHUP and not self._terminal_is_gone():
            if not self._stopping:
                self._say("SIGHUP: restarting one worker after the other")
                notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
                self._rolling, self._restarting = deque(self._slots), True
            return
        if self._stopping:
            self._say("stopping at once")
            self._status = 128 + number
            for worker in self._workers:
                worker.process.kill()
            return
        self._stop(f"{signal.Signals(number).name}: stopping")

    def _terminal_is_gone(self) -> bool:
        """Whether the SIGHUP is that of a terminal that was closed, and not of somebody who wants a restart."""
        return self._has_terminal and not _has_terminal()

    def _stop(self, why: str, status: int = 0) -> None:
        self._say(why)
        notify(STOPPING=1)
        self._stopping, self._status = True, status
        self._rolling.clear()
        for slot in self._slots:
            slot.due = None
        for worker in self._workers:
            self._dismiss(worker, STOP)

    def _dismiss(self, worker: _Worker, code: int) -> None:
        if worker.leaving and code == RESTART:
            return
        if worker.ready_at is None:
            # It may be deep in an import, where it hears nothing; it has no clients.
            worker.process.terminate()
        worker.tell(code)
        worker.deadline = time.monotonic() + self.spec.leave_for(code) + _GRACE

    def _hear(self, worker: _Worker) -> None:
        assert worker.status is not None
        data = os.read(worker.status, 4096)
        worker.said += data
        *lines, worker.said = worker.said.split(b"\n")
        for line in lines:
            said: dict[str, Any] = json.loads(line)
            if said.get("ready"):
                self._ready(worker)
            else:
                worker.error, worker.final = said["error"], said["final"]
        if not data:
            os.close(worker.status)
            worker.status = None

    def _ready(self, worker: _Worker) -> None:
        worker.ready_at, worker.deadline = time.monotonic(), None
        if worker.leaving:
            worker.deadline = time.monotonic() + self.spec.leave_for(STOP) + _GRACE
            return
        self._say(f"{worker.name} is ready")
        if not self._ever_ready:
            self._ever_ready = True
            for slot in self._slots:
                if slot.worker is None:
                    slot.due = time.monotonic()
        old, worker.slot.worker = worker.slot.worker, worker
        worker.slot.due = None
        if self._waits_for is worker:
            self._waits_for = old
            if old is not None:
                self._dismiss(old, RESTART)
        if not self._restarting and all(slot.worker and slot.worker.ready_at for slot in self._slots):
            notify(READY=1, MAINPID=os.getpid(), STATUS=f"{len(self._slots)} workers")

    def _look_at(self, worker: _Worker) -> None:
        if worker.process.poll() is not None:
            self._ended(worker)
        elif worker.deadline is not None and time.monotonic() >= worker.deadline:
            worker.deadline = None
            if worker.leaving:
                self._say(f"{worker.name} has not ended in its time: killing it")
            else:
                worker.error = f"it was not ready within {self.start_timeout:g} s"
            worker.process.kill()

    def _ended(self, worker: _Worker) -> None:
        while worker.status is not None:
            # What it said last. Its children may hold the pipe open: no waiting for the end of it.
            if not _readable([worker.status], 0.0):
                os.close(worker.status)
                worker.status = None
            else:
                self._hear(worker)
        self._workers.remove(worker)
        if worker.orders is not None:
            os.close(worker.orders)
        slot = worker.slot
        needed = slot.worker in (worker, None)
        if needed:
            slot.worker = None
        if worker.leaving:
            self._say(f"{worker.name} has ended")
        if self._waits_for is worker:
            self._waits_for = None
            if not worker.leaving:
                self._rolling.clear()
                self._restarting = False
                self._say(f"{worker.name} has failed, so the others stay as they are: {self._why(worker)}")
                notify(READY=1)
        if needed and not self._stopping and not worker.leaving:
            self._died(worker)

    def _died(self, worker: _Worker) -> None:
        slot = worker.slot
        why = self._why(worker)
        if worker.ready_at is None:
            self._failed += 1
            if not self._ever_ready and (worker.final or self._failed >= _ATTEMPTS):
                self._say(f"{worker.name}: {why}")
                attempts = "" if worker.final else f" in {self._failed} attempts"
                self._stop(f"no worker became ready{attempts}: giving up", 3)
                return
        elif time.monotonic() - worker.ready_at >= _STAYED:
            slot.failures = 0
        slot.failures += 1
        # The exponent is limited so that the power is.
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(slot.failures - 1, 20)) * random.uniform(0.5, 1.0)
        slot.due = time.monotonic() + pause
        self._say(f"{worker.name} has ended, {why}; the next one in {pause:.1f} s")

    @staticmethod
    def _why(worker: _Worker) -> str:
        if worker.error:
            return worker.error
        code = worker.process.returncode
        return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    # What is done

    def _roll(self) -> None:
        """The next step of a rolling restart: one worker's successor is started when the one before has ended."""
        if self._waits_for is not None or self._stopping:
            return
        if not self._rolling:
            if self._restarting:
                self._restarting = False
                self._say("all workers are new")
                notify(READY=1)
            return
        slot = self._rolling.popleft()
        slot.due = None
        self._waits_for = self._start(slot)

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.due is not None and time.monotonic() >= slot.due:
                slot.due = None
                slot.worker = self._start(slot)

    def _start(self, slot: _Slot) -> _Worker:
        status_read, status_write = os.pipe()
        orders_read, orders_write = os.pipe()
        sockets = [each.fileno() for each in slot.sockets]
        tls_sockets = [each.fileno() for each in slot.tls_sockets]
        arguments = {
            "worker": str(slot.number),
            "spec": asdict(self.spec),
            "status": status_write,
            "orders": orders_read,
            "sockets": sockets,
            "tls_sockets": tls_sockets,
        }
        # These are about this process.
        ours = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment.update(PYHV_WORKER=str(slot.number), PYHV_WORKERS=str(len(self._slots)))
        try:
            process = subprocess.Popen(
                [sys.executable, *_python_options(), "-m", "pyhv._cli.worker", json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=[status_write, orders_read, *sockets, *tls_sockets],
                env=environment,
                # Out of the terminal's foreground: Ctrl-C there is for the supervisor alone.
                start_new_session=True,
            )
        finally:
            os.close(status_write)
            os.close(orders_read)
        worker = _Worker(slot, process, status_read, orders_write, time.monotonic() + self.start_timeout)
        self._workers.append(worker)
        return worker

    def _kill_all(self) -> None:
        """The last resort, when something is wrong here: the orders' end would do, but takes its time."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            for descriptor in (worker.status, worker.orders):
                if descriptor is not None:
                    os.close(descriptor)
        self._workers.clear()

    def _say(self, text: str) -> None:
        self.out.line(f"{self.out.paint(clock(), 'dim')} {printable(text)}")


def _readable(descriptors: Iterable[int | None], timeout: float | None) -> set[int]:
    """Those of them with something to read, or at their end, after `timeout` seconds at the latest."""
    poll = select.poll()
    for each in descriptors:
        if each is not None:
            poll.register(each, select.POLLIN)
    # Rounded up, so that what is due then is due.
    return {each for each, _ in poll.poll(None if timeout is None else math.ceil(timeout * 1000))}


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _python_options() -> list[str]:
    """What this interpreter was started with, as far as it is documented: -W and -X."""
    options = [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():
        options += ["-X", name if value is True else f"{name}={value}"]
    return options
