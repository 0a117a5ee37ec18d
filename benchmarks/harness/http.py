"""What HTTP cases need around the generator: the files to serve, and a look at one answer before the load."""

from __future__ import annotations

import http.client
import json
import random

from harness.cases import FILES, Case
from harness.process import HelperError

#: A server's workers may start after its port listens.
PROBE_TIMEOUT = 20.0
FILE_SIZES = {"1k.bin": 1024, "1m.bin": 1024 * 1024}
#: What "about 1 KiB" of JSON may be: encoders differ in their spaces.
JSON_LENGTHS = range(900, 1300)


class NotServedError(Exception):
    """The peer has nothing for this case: no failure, but no row either. The message is one line."""


def make_files() -> None:
    """Writes the files that peers serve, the same bytes every time."""
    FILES.mkdir(parents=True, exist_ok=True)
    for name, size in FILE_SIZES.items():
        (FILES / name).write_bytes(random.Random(size).randbytes(size))


def probe(port: int, case: Case) -> None:
    """Asks once and looks at the whole answer: under load only statuses and lengths are checked.

    Raises NotServedError for 404, HelperError for any other answer than the one expected.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT)
    body = b"x" * case.post
    try:
        connection.request("POST" if body else "GET", case.path, body or None)
        answer = connection.getresponse()
        received = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise HelperError(f"{case.path}: {error}") from None
    finally:
        connection.close()
    if answer.status == 404:
        raise NotServedError(f"answers {case.path} with 404")
    if answer.status != 200 or not _is_right(case, body, received):
        raise HelperError(f"{case.path}: {answer.status} with {len(received)} bytes, {received[:40]!r}")


def _is_right(case: Case, sent: bytes, received: bytes) -> bool:
    if sent:
        return received == sent
    if case.path == "/json":
        return len(received) in JSON_LENGTHS and isinstance(json.loads(received), dict)
    name = case.path.rpartition("/")[2]
    return received == ((FILES / name).read_bytes() if name in FILE_SIZES else b"pong")
