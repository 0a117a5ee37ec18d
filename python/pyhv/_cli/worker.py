"""A worker of `pyhv run --workers N`, as the supervisor starts it: `python -m pyhv._cli.worker JSON`.

Between the two are two pipes. On one the worker says that it is ready, or what went wrong, and its end tells that it is
gone. On the other the supervisor says when to end, and its end tells that the supervisor is gone, however it went.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

from pyhv._cli.output import CommandError
from pyhv._cli.program import RESTART, STOP, Asked, Spec, load, serve, set_up_logs

#: What the supervisor says.
_COMMANDS = {b"r": RESTART, b"s": STOP}

#: Seconds beyond its time that a worker without a supervisor gets to end.
_GRACE = 2.0


class _Worker:
    def __init__(self, arguments: dict[str, Any]) -> None:
        self._number: str = arguments["worker"]
        self._spec = Spec(**arguments["spec"])
        self._status: int = arguments["status"]
        self._orders: int = arguments["orders"]
        for descriptor in (self._status, self._orders, *arguments["sockets"], *arguments["tls_sockets"]):
            os.set_inheritable(descriptor, False)
        self._spec.settings["sockets"] = arguments["sockets"]
        if arguments["tls_sockets"]:
            self._spec.settings["tls_sockets"] = arguments["tls_sockets"]
        self._asked = Asked()

    def run(self) -> int:
        # Ctrl-C and the end of a terminal are the supervisor's affair.
        for name in ("SIGINT", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        threading.Thread(target=self._obey, name="pyhv-run-orders", daemon=True).start()
        try:
            server = load(self._spec.app)
            set_up_logs(f"[worker {self._number}] ", self._spec.access_log)
            serve(server, self._spec, self._asked, lambda: self._say(ready=True))
        except CommandError as error:
            self._say(error=str(error), final=True)
        except Exception as error:
            traceback.print_exc()
            self._say(error=f"{type(error).__name__}: {error}", final=False)
        else:
            return 0
        return 1

    def _say(self, **what: object) -> None:
        # Broken: the supervisor is gone, which the other pipe tells too.
        with suppress(BrokenPipeError):
            os.write(self._status, json.dumps(what).encode() + b"\n")

    def _terminated(self, _number: int, _frame: FrameType | None) -> None:
        self._asked.ask(STOP)

    def _obey(self) -> None:
        while order := os.read(self._orders, 1):
            self._asked.ask(_COMMANDS[order])
        self._asked.ask(STOP)
        time.sleep(self._spec.leave_for(STOP) + _GRACE)
        _end("the supervisor is gone, and the program does not come to its end: giving up")


def _end(why: str) -> NoReturn:
    os.write(2, f"pyhv run: {why}\n".encode())
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_Worker(json.loads(sys.argv[1])).run())
