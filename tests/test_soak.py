"""The soak of `make soak`, for a few seconds: that it runs, judges and draws; the long ones are in docs/soak.md.

And its HTTP client, which may ask again in one case only: one that forgives more would hide what a server does wrong.
"""

from __future__ import annotations

import random
import socket
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from soak_load import Counts, Requester, Target
from support import Background, RawPeer, RawServer
from support_load import ROOT, Program

SOAK = ROOT / "scripts" / "soak.py"

PONG = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong"


def test_a_few_seconds_of_everything_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    drawing = tmp_path / "soak.svg"
    with Program(SOAK, "--minutes", "0.05", "--svg", drawing) as program:
        code = program.finish(60)
        assert code == 0, program.output
    assert "lost / doubled / corrupt     0 / 0 / 0" in program.output
    assert program.output.rstrip().endswith("verdict: nothing lost, nothing left behind")
    lines = ElementTree.parse(drawing).getroot().findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert all(len(line.attrib["points"].split()) > 5 for line in lines)


def answer(peer: RawPeer, what: bytes) -> None:
    """Reads a request, which has no body or has come with it, and answers."""
    peer.read_head_lines()
    peer.send_bytes(what)


def leave(peer: RawPeer) -> None:
    peer.socket.close()


def reset(peer: RawPeer) -> None:
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()


@contextmanager
def requester(tmp_path: Path, counts: Counts) -> Iterator[tuple[RawServer, Requester]]:
    with RawServer() as server:
        asking = Requester(Target(server.port, 0, tmp_path, 1.0), False, counts, random.Random(1))
        try:
            yield server, asking
        finally:
            asking.connection.close()


def ask(asking: Requester, times: int) -> Exception | None:
    """What it ended with."""
    try:
        for _ in range(times):
            asking.ask("GET", "/ping", b"")
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("end", [leave, reset])
def test_a_request_is_asked_again_if_its_used_connection_ended_before_an_answer(
    tmp_path: Path, end: Callable[[RawPeer], None]
) -> None:
    counts = Counts()
    with requester(tmp_path, counts) as (server, asking):
        asked = Background(lambda: ask(asking, 2))
        first = server.accept()
        answer(first, PONG)
        first.read_head_lines()
        end(first)
        second = server.accept()
        answer(second, PONG)
        assert asked.result() is None
        leave(second)
    assert counts.retried == 1
    assert counts.http["http"] == 2
    assert counts.unexpected == []


@pytest.mark.parametrize(
    "answers",
    [[b""], [PONG[:1]], [PONG, PONG[:1]], [PONG, PONG[:-1]], [PONG, b"", b""]],
    ids=lambda parts: str(len(parts)),
)
@pytest.mark.parametrize("end", [leave, reset])
def test_every_other_failure_is_one(tmp_path: Path, answers: Sequence[bytes], end: Callable[[RawPeer], None]) -> None:
    """On a new connection; with a part of an answer; a second time."""
    counts = Counts()
    with requester(tmp_path, counts) as (server, asking):
        asked = Background(lambda: ask(asking, 2))
        peer = server.accept()
        for number, part in enumerate(answers):
            if number and answers[number - 1] == b"":
                peer = server.accept()
            answer(peer, part)
            if part != PONG:
                end(peer)
        assert isinstance(asked.result(), Exception)
    assert counts.http["http"] == answers.count(PONG)
    assert counts.retried == max(0, answers.count(b"") - 1)
