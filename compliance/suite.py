"""The suite at work: its fuzzing client or its fuzzing server, run by the Python of compliance/.cache.

    .cache/venv/bin/python -I suite.py '{"role": "client", "url": "ws://…", "cases": ["1.*"], "loops": 20, …}'

`run.py` starts it, with these settings:

- role: "client", to examine the server at `url`; "server", to examine whoever connects
- cases: patterns of the cases to run
- loops: most messages that an echo loop sends (9.7, 9.8, 12 and 13; the suite's own number is 1000); null for no cap
- case_limit: seconds after which a case is aborted, and FAILED

It writes JSON to stdout: first a line with the numbers of the wanted cases, and as a server its URL; then a line for
each case that is over. What the suite itself prints, and all it knows about a case that is not OK, goes to stderr.
"""

from __future__ import annotations

import fnmatch
import json
import socket
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")

from autobahntestsuite import fuzzing  # noqa: E402
from autobahntestsuite.octets import characters, octets  # noqa: E402
from twisted.internet import reactor  # noqa: E402

HOST = "127.0.0.1"
SHOWN = 64  # octets of a payload in the log
VERDICT = ("id", "behavior", "behaviorClose", "result", "resultClose", "remoteCloseCode", "duration")

settings: dict[str, Any] = json.loads(sys.argv[1])
# The suite prints; stdout is for run.py alone.
results, sys.stdout = sys.stdout, sys.stderr


def tell(what: dict[str, Any]) -> None:
    """One line for run.py."""
    print(json.dumps(what, default=characters), file=results, flush=True)


def readable(data: str | bytes, maxlen: int = SHOWN, replace: bool = False) -> str:
    """A payload for the log: text, or hexadecimal digits where it is none."""
    head: bytes = octets(data)[:maxlen]
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = "0x" + head.hex()
    return text + (" ..." if len(data) > maxlen else "")


class Edge:
    """Between the suite, whose strings are characters, and autobahn, whose strings are bytes."""

    def sendFrame(  # noqa: N802
        self,
        opcode: int,
        payload: str | bytes = b"",
        fin: bool = True,
        rsv: int = 0,
        mask: str | bytes | None = None,
        payload_len: int | None = None,
        chopsize: int | None = None,
        sync: bool = False,
    ) -> None:
        """Repeats the payload itself up to `payload_len`: autobahn's way of it divides as Python 2 did."""
        data = octets(payload)
        if payload_len is not None:
            data = (data * (payload_len // len(data) + 1))[:payload_len]
        key = None if mask is None else octets(mask)
        super().sendFrame(opcode, data, fin, rsv, key, None, chopsize, sync)  # type: ignore[misc]

    def sendMessage(self, payload: str | bytes, *more: Any, **named: Any) -> None:  # noqa: N802
        super().sendMessage(octets(payload), *more, **named)  # type: ignore[misc]

    def sendMessageFrameData(self, payload: str | bytes, *more: Any, **named: Any) -> Any:  # noqa: N802
        return super().sendMessageFrameData(octets(payload), *more, **named)  # type: ignore[misc]

    def sendCloseFrame(  # noqa: N802
        self,
        code: int | None = None,
        reasonUtf8: str | bytes | None = None,  # noqa: N803
        isReply: bool = False,  # noqa: N803
    ) -> None:
        """A reason that is echoed is text, which autobahn has decoded; any other str is a case's octets."""
        if isinstance(reasonUtf8, str):
            reasonUtf8 = reasonUtf8.encode("utf-8") if isReply else octets(reasonUtf8)  # noqa: N806
        super().sendCloseFrame(code, reasonUtf8, isReply)  # type: ignore[misc]

    def logRxFrame(self, header: Any, payload: list[bytes]) -> None:  # noqa: N802
        super().logRxFrame(header, [characters(b"".join(payload))])  # type: ignore[misc]

    def _onMessage(self, payload: bytes, binary: bool) -> None:  # noqa: N802
        self.onMessage(characters(payload), binary)  # type: ignore[attr-defined]

    def _onPong(self, payload: bytes) -> None:  # noqa: N802
        self.onPong(characters(payload))  # type: ignore[attr-defined]


class Limited(Edge):
    """A connection that ends after `case_limit`, whatever the peer does."""

    _alarm: Any = None

    def connectionMade(self) -> None:  # noqa: N802
        self._alarm = reactor.callLater(settings["case_limit"], self._overdue)
        super().connectionMade()  # type: ignore[misc]

    def _overdue(self) -> None:
        self._alarm = None
        this: Any = self
        if this.runCase:
            this.factory.overdue.add(this.factory.CaseSet.caseClasstoId(this.Case))
        this.transport.abortConnection()

    def connectionLost(self, reason: Any) -> None:  # noqa: N802
        if self._alarm:
            self._alarm.cancel()
        super().connectionLost(reason)  # type: ignore[misc]


class Reporter:
    """Tells of each case as it ends, instead of keeping all for a report."""

    overdue: set[str]

    def logCase(self, case: dict[str, Any]) -> None:  # noqa: N802
        if case["id"] in self.overdue:
            case["behavior"] = "FAILED"
            case["result"] = f"aborted: not over after {settings['case_limit']} s. {case['result']}"
        if case["behavior"] != "OK" or case["behaviorClose"] != "OK":
            print(json.dumps(case, default=characters, indent=1))
        tell({key: case[key] for key in VERDICT})

    def createReports(self) -> None:  # noqa: N802
        """Nothing more to tell. As a client the suite ends by itself, as a server when it gets SIGTERM."""


class ServerProtocol(Limited, fuzzing.FuzzingServerProtocol):
    pass


class ClientProtocol(Limited, fuzzing.FuzzingClientProtocol):
    pass


class ServerFactory(Reporter, fuzzing.FuzzingServerFactory):
    protocol = ServerProtocol


class ClientFactory(Reporter, fuzzing.FuzzingClientFactory):
    pass


def main() -> None:
    """Runs until all wanted cases are over, or until SIGTERM."""
    fuzzing.binLogData = fuzzing.asciiLogData = readable
    # By this name the client's factory makes its connections.
    fuzzing.FuzzingClientProtocol = ClientProtocol
    Reporter.overdue = set()

    every = [case.__name__.removeprefix("Case").replace("_", ".") for case in fuzzing.Cases]
    wanted = [number for number in every if any(fnmatch.fnmatchcase(number, p) for p in settings["cases"])]
    if settings["loops"]:
        for case in fuzzing.Cases:
            if hasattr(case, "COUNT"):
                case.COUNT = min(case.COUNT, settings["loops"])

    spec: dict[str, Any] = {"cases": wanted, "exclude-cases": [], "exclude-agent-cases": {}}
    if settings["role"] == "client":
        tell({"wanted": wanted})
        ClientFactory(spec | {"servers": [{"url": settings["url"], "agent": "server"}]})
    else:
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)
        # autobahn compares the port of the Host header with that of its URL.
        url = f"ws://{HOST}:{listener.getsockname()[1]}"
        reactor.adoptStreamPort(listener.fileno(), socket.AF_INET, ServerFactory(spec | {"url": url}))
        tell({"wanted": wanted, "url": url})
    reactor.run()


if __name__ == "__main__":
    main()
