"""Forms, uploads and compressed bodies: what arrives, what is refused, what is left behind, what is saved."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import resource
import shutil
import socket
import stat
import subprocess
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhv import BadRequest, HttpRequest, HttpResponse, UploadedFile, safe_filename
from support import HOST, Answer, RawClient, RecordingServer, ServerThread, port_of, serving, tick_until, wait_until

THRESHOLD = 1000  # of the servers here, so that small files go to the disk too
TYPE = ("Content-Type", "multipart/form-data; boundary=b-o")
URLENCODED = ("Content-Type", "application/x-www-form-urlencoded")


class FormServer(RecordingServer):
    """Tells what it got, and keeps the requests in `kept` if that is a list."""

    def on_init(self) -> None:
        self.kept: list[HttpRequest] | None = None
        self.form: dict[str, Any] = {}  # of the last request
        self.any("/form", self.got)
        self.any("/body", lambda req, resp: req.body)
        self.get("/ping", lambda req, resp: resp.text("pong"))

    def got(self, req: HttpRequest, resp: HttpResponse) -> None:
        if self.kept is not None:
            self.kept.append(req)
        assert req.body == b"" or not req.files
        self.form = {
            "fields": req.form().pairs(),
            "files": [
                (name, file.filename, file.content_type, file.size, digest(file.open()))
                for name, file in req.files.pairs()
            ],
            "temporary": [file._upload.is_temporary for _, file in req.files.pairs()],
        }
        resp.json(self.form)


def digest(file: Any) -> str:
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else sha(file.read())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """Where temporary files go; empty again when the test has ended."""
    path = tmp_path / "uploads"
    path.mkdir()
    return path


@pytest.fixture
def forms(uploads: Path) -> Iterator[Forms]:
    server = FormServer()
    with serving(server, upload_threshold=THRESHOLD, upload_dir=uploads) as thread:
        yield Forms(server, thread.port, uploads)
    gc.collect()
    wait_until(lambda: not list(uploads.iterdir()), what="the temporary files are gone")


class Forms:
    """A server of forms, and clients of it."""

    def __init__(self, server: FormServer, port: int, uploads: Path) -> None:
        self.server = server
        self.port = port
        self.uploads = uploads
        self.url = f"http://{HOST}:{port}/form"

    def post(self, body: bytes, *headers: tuple[str, str], path: str = "/form") -> Answer:
        with RawClient(self.port, upgrade=False) as raw:
            # A body that is too large need not be read to its end.
            with suppress(BrokenPipeError, ConnectionResetError):
                raw.request("POST", path, headers or [TYPE], body)
            return raw.read_answer()

    def still_serves(self) -> None:
        assert httpx.get(f"http://{HOST}:{self.port}/ping").text == "pong"


def part(disposition: str, content: bytes = b"", head: str = "") -> bytes:
    return f"--b-o\r\nContent-Disposition: form-data; {disposition}\r\n{head}\r\n".encode() + content + b"\r\n"


END = b"--b-o--\r\n"


# What arrives


def test_a_multipart_form(forms: Forms) -> None:
    body = (
        part("name=a", b"1")
        + part("name=f; filename=x.txt", b"hello", "Content-Type: text/x\r\n")
        + part("name=a", b"2")
    )
    answer = forms.post(
        b"preamble\r\n" + body + part('name="g"; filename="y"', b"z" * THRESHOLD * 2) + END + b"epilogue"
    )
    assert answer.status == 200
    assert json.loads(answer.body) == {
        "fields": [["a", "1"], ["a", "2"]],
        "files": [
            ["f", "x.txt", "text/x", 5, sha(b"hello")],
            ["g", "y", "application/octet-stream", 2000, sha(b"z" * 2000)],
        ],
        "temporary": [False, True],
    }


def test_byte_by_byte(forms: Forms) -> None:
    body = part("name=a", b"1\r\n--b-\r\n") + part("name=f; filename=x", b"\r\n--b-" * 20) + part("name=e") + END
    with RawClient(forms.port, upgrade=False) as raw:
        raw.request("POST", "/form", [TYPE, ("Transfer-Encoding", "chunked")])
        for byte in body:
            raw.send_bytes(b"1\r\n" + bytes([byte]) + b"\r\n")
        raw.send_bytes(b"0\r\n\r\n")
        form = json.loads(raw.read_answer().body)
        assert form["fields"] == [["a", "1\r\n--b-\r\n"], ["e", ""]]
        assert form["files"] == [["f", "x", "application/octet-stream", 120, sha(b"\r\n--b-" * 20)]]
        # The connection goes on, epilogue or not.
        raw.request("POST", "/form", [TYPE], END + b"\r\nan epilogue")
        assert json.loads(raw.read_answer().body)["fields"] == []
        raw.request("POST", "/form", [URLENCODED], b"a=1")
        assert json.loads(raw.read_answer().body)["fields"] == [["a", "1"]]


@pytest.mark.parametrize(
    "size", [0, 1, THRESHOLD - 1, THRESHOLD, THRESHOLD + 1, 1 << 18, (1 << 18) + 1, 5 << 20, 64 << 20]
)
def test_files_of_every_size(forms: Forms, size: int) -> None:
    content = random.Random(size).randbytes(size)
    answer = httpx.post(forms.url, files={"f": ("x.bin", content)}, timeout=60).json()
    assert answer["files"][0][3:] == [size, sha(content)]
    assert answer["temporary"] == [size > THRESHOLD]


def test_what_is_in_memory_counts_together(uploads: Path) -> None:
    """Files go to the disk below the threshold when the others have taken max_body_size."""
    server = FormServer()
    with serving(server, max_body_size=2500, upload_dir=uploads) as thread:
        post = Forms(server, thread.port, uploads).post
        post(b"".join(part("name=f; filename=x", b"y" * 1000) for _ in range(4)) + END)
        assert server.form["temporary"] == [False, False, True, True]
        assert post(part("name=a", b"y" * 2000) + part("name=b", b"y" * 2000) + END).status == 413
        assert server.refusals == {"max_body_size": 1}


def test_an_urlencoded_form(forms: Forms) -> None:
    body = b"a=1&b=%C3%BC+x&&a=%zz%4&c&=d&e=%ff&\xc3\xa9=1&x=a=b"
    answer = forms.post(body, ("Content-Type", "Application/X-WWW-Form-Urlencoded; charset=utf-8"))
    assert json.loads(answer.body)["fields"] == [
        ["a", "1"],
        ["b", "ü x"],
        ["a", "%zz%4"],
        ["c", ""],
        ["", "d"],
        ["e", "\ufffd"],
        ["é", "1"],
        ["x", "a=b"],
    ]
    assert json.loads(forms.post(b"", URLENCODED).body)["fields"] == []


def test_form_data_is_a_mapping(server: RecordingServer) -> None:
    requests: list[HttpRequest] = []
    server.post("/", lambda req, resp: requests.append(req))
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("POST", "/", [URLENCODED], b"a=1&b=2&a=3")
        tick_until(lambda: requests, server)
        form = requests[0].form()
        assert form["a"] == "1" and form.get("c") is None and form.get_all("a") == ["1", "3"]
        assert form.pairs() == [("a", "1"), ("b", "2"), ("a", "3")]
        assert dict(form) == {"a": "1", "b": "2"} and len(form) == 2
        assert requests[0].form() is form
        assert requests[0].body == b"a=1&b=2&a=3"
        assert not requests[0].files


@pytest.mark.parametrize(
    "headers", [[("Content-Type", "text/plain")], [("Content-Type", "multipart/mixed; boundary=x")], []]
)
def test_another_body_is_no_form(server: RecordingServer, headers: list[tuple[str, str]]) -> None:
    seen: list[BaseException] = []

    def handler(req: HttpRequest, resp: HttpResponse) -> None:
        assert dict(req.files) == {} and req.body == b"a=1"
        try:
            req.form()
        except BadRequest as error:
            seen.append(error)
            raise

    server.post("/", handler)
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("POST", "/", headers, b"a=1")
        tick_until(raw.readable, server)
        answer = raw.read_answer()
    assert answer.status == 400 and b"multipart/form-data or application/x-www-form-urlencoded" in answer.body
    assert len(seen) == 1 and server.record.count("error") == 0


def test_a_file_that_nobody_chose(forms: Forms) -> None:
    body = part('name=f; filename=""', b"", "Content-Type: application/octet-stream\r\n")
    forms.post(body + part('name=g; filename=""', b"x") + END)
    assert [file[:2] for file in forms.server.form["files"]] == [("g", "")]


# What is refused


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", END),
        ("multipart/form-data; boundary=", END),
        ("multipart/form-data; boundary=" + "b" * 71, END),
        ("multipart/form-data; boundary=b-o", b""),
        ("multipart/form-data; boundary=b-o", b"nothing of a form"),
        ("multipart/form-data; boundary=b-o", part("name=a", b"1")),
        ("multipart/form-data; boundary=b-o", part("filename=a", b"1") + END),
        ("multipart/form-data; boundary=b-o", b"--b-o\r\n\r\nno head\r\n" + END),
        ("multipart/form-data; boundary=b-o", b"--b-o\r\nno colon\r\n\r\n\r\n" + END),
        ("multipart/form-data; boundary=b-o", b"--b-o junk\r\n\r\n\r\n" + END),
        (
            "multipart/form-data; boundary=b-o",
            b"--b-o\r\n" + b"".join(b"H%d: x\r\n" % n for n in range(40)) + b"\r\n" + END,
        ),
    ],
)
def test_what_is_malformed_gets_400(forms: Forms, content_type: str, body: bytes) -> None:
    answer = forms.post(body, ("Content-Type", content_type))
    assert answer.status == 400 and answer.body.startswith(b"400 Bad Request: ")
    assert forms.server.refusals == {"bad request": 1}
    forms.still_serves()


LIMITS: list[tuple[str, int, bytes, bytes]] = [
    ("max_form_parts", 3, part("name=a") * 3, part("name=a") * 4),
    ("max_form_parts", 3, part("name=f; filename=x", b"y") * 3, part("name=f; filename=x", b"y") * 4),
    ("max_form_field_size", 10, part("name=a", b"x" * 10), part("name=a", b"x" * 11)),
    ("max_form_field_size", 0, part("name=a"), part("name=a", b"x")),
    ("max_upload_size", 10_000, part("name=f; filename=x", b"x" * 9_000), part("name=f; filename=x", b"x" * 10_000)),
]


@pytest.mark.parametrize(("setting", "limit", "within", "beyond"), LIMITS)
@pytest.mark.parametrize("chunked", [False, True])
def test_limits(
    uploads: Path,
    caplog: pytest.LogCaptureFixture,
    setting: str,
    limit: int,
    within: bytes,
    beyond: bytes,
    chunked: bool,
) -> None:
    server = FormServer()
    with serving(server, **{setting: limit}, upload_dir=uploads, upload_threshold=THRESHOLD) as thread:
        forms = Forms(server, thread.port, uploads)
        assert forms.post(within + END).status == 200
        assert server.refusals == {}
        if chunked:
            with RawClient(thread.port, upgrade=False) as raw:
                raw.request("POST", "/form", [TYPE, ("Transfer-Encoding", "chunked")])
                raw.send_bytes(b"%x\r\n" % len(beyond) + beyond + b"\r\n")
                answer = raw.read_answer()
        else:
            answer = forms.post(beyond + END)
        assert answer.status == 413 and answer.headers["connection"] == "close"
        assert server.refusals == {setting: 1}
        wait_until(lambda: any(f"{setting}={limit}" in text for text in caplog.messages))
        forms.still_serves()
        wait_until(lambda: not list(uploads.iterdir()))


def test_max_form_parts_of_an_urlencoded_form(serve: Callable[..., ServerThread], uploads: Path) -> None:
    server = FormServer()
    forms = Forms(server, serve(server, max_form_parts=3).port, uploads)
    assert json.loads(forms.post(b"&&a=1&a=2&&&a=3&", URLENCODED).body)["fields"] == [
        ["a", "1"],
        ["a", "2"],
        ["a", "3"],
    ]
    answer = forms.post(b"a=1&a=2&a=3&a=4", URLENCODED)
    assert answer.status == 400
    assert b"max_form_parts=3" in answer.body
    # Of no other body, and not before the program asks for the fields: curl calls all that it sends urlencoded.
    assert forms.post(b"a=1&a=2&a=3&a=4", URLENCODED, path="/body").status == 200
    assert forms.post(b"a&a&a&a", ("Content-Type", "text/plain"), path="/body").status == 200


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_form_parts", 0),
        ("max_form_field_size", -1),
        ("max_upload_size", "many"),
        ("upload_threshold", -1),
        ("upload_dir", "/nowhere/at/all"),
    ],
)
def test_settings_out_of_range(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        FormServer().start(0, **{setting: value})  # type: ignore[arg-type]


def peak() -> int:
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "preamble": (b"", b"x" * 65536),
    "head": (b"--b-o\r\nContent-Disposition: form-data; name=a\r\nX: ", b"x" * 65536),
    "heads": (b"--b-o\r\n", b"X: y\r\n" * 10_000),
    "parts": (b"", part("name=a") * 1000),
    "field": (part("name=a")[:-2], b"x" * 65536),
    "epilogue": (part("name=f; filename=x") + END, b"x" * 65536),
    "padding": (b"--b-o", b" " * 65536),
    "file": (part("name=f; filename=x")[:-2], b"x" * 65536),
}


def send_until_stopped(raw: RawClient, piece: bytes, most: int) -> None:
    """Sends chunks until the server answers or ends the connection, which it has to before it got `most` bytes."""
    chunk = b"%x\r\n" % len(piece) + piece + b"\r\n"
    try:
        for _ in range(most // len(piece)):
            raw.send_bytes(chunk)
            if raw.readable():
                return
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("nobody stopped it")


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_not_kept(forms: Forms, flood: str) -> None:
    start, piece = FLOODS[flood]
    before = peak()
    with RawClient(forms.port, upgrade=False) as raw:
        raw.request("POST", "/form", [TYPE, ("Transfer-Encoding", "chunked")])
        raw.send_bytes(b"%x\r\n" % len(start) + start + b"\r\n" if start else b"")
        send_until_stopped(raw, piece, 300 << 20)
    forms.still_serves()
    assert peak() - before < 48 << 20
    assert sum(forms.server.refusals.values()) == 1


def test_body_timeout_applies(uploads: Path) -> None:
    server = FormServer()
    with serving(server, body_timeout=0.3, upload_dir=uploads, upload_threshold=10) as thread:
        with RawClient(thread.port, upgrade=False) as raw:
            raw.request("POST", "/form", [TYPE, ("Content-Length", "100000")])
            raw.send_bytes(part("name=f; filename=x", b"y" * 100)[:-2])
            assert raw.read_answer().status == 408
        assert server.refusals == {"body_timeout": 1}
        wait_until(lambda: not list(uploads.iterdir()))


def test_a_directory_that_has_gone_is_our_fault(uploads: Path) -> None:
    server = FormServer()
    gone = uploads / "gone"
    gone.mkdir()
    with serving(server, upload_dir=gone, upload_threshold=10) as thread:
        gone.rmdir()
        answer = Forms(server, thread.port, uploads).post(part("name=f; filename=x", b"y" * 100) + END)
        assert answer.status == 500
        assert server.refusals == {"upload_dir": 1}


# What is left behind


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_temporary_files_live_as_long_as_their_request(forms: Forms) -> None:
    forms.still_serves()  # everything that the server opens once is open
    forms.server.kept = []
    before = descriptors()
    for _ in range(3):
        forms.post(part("name=f; filename=x", b"y" * 5000) + END)
    assert len(list(forms.uploads.iterdir())) == 3
    assert stat.S_IMODE(next(forms.uploads.iterdir()).stat().st_mode) == 0o600
    wait_until(lambda: descriptors() <= before)
    kept = forms.server.kept.pop().files["f"]
    forms.server.kept.clear()
    gc.collect()
    wait_until(lambda: len(list(forms.uploads.iterdir())) == 1)
    assert kept.read() == b"y" * 5000  # held by itself
    opened = kept.open()
    del kept
    assert not list(forms.uploads.iterdir())
    assert opened.read() == b"y" * 5000
    opened.close()


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_in_the_middle(forms: Forms, how: str) -> None:
    forms.still_serves()
    before = descriptors()
    clients = [RawClient(forms.port, upgrade=False) for _ in range(10)]
    for raw in clients:
        raw.request("POST", "/form", [TYPE, ("Content-Length", "100000000")])
        raw.send_bytes(part("name=f; filename=x", b"y" * (1 << 20))[:-2])
    wait_until(lambda: len(list(forms.uploads.iterdir())) == 10, what="all are being written")
    for raw in clients:
        if how == "reset":
            raw.reset()
        else:
            raw.socket.close()
    wait_until(lambda: not list(forms.uploads.iterdir()), what="the files are gone")
    wait_until(lambda: descriptors() <= before, what="the descriptors are back")
    assert forms.server.refusals == {} and forms.server.form == {}


def test_a_handler_that_never_runs(uploads: Path) -> None:
    server = FormServer()
    server.start(0, handler_timeout=0.2, upload_dir=uploads, upload_threshold=10)
    with RawClient(port_of(server), upgrade=False) as raw:
        raw.request("POST", "/form", [TYPE], part("name=f; filename=x", b"y" * 100) + END)
        assert raw.read_answer().status == 503
    server.tick()
    assert server.form == {} and not list(uploads.iterdir())
    server.stop()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("timeout", [0, 0.5])
def test_a_server_that_stops(uploads: Path, whole: bool, timeout: float) -> None:
    server = FormServer()
    server.start(0, upload_dir=uploads, upload_threshold=10)
    server.kept = []
    with RawClient(port_of(server), upgrade=False) as raw:
        body = part("name=f; filename=x", b"y" * 1_000_000)
        raw.request("POST", "/form", [TYPE, ("Content-Length", str(len(body + END)))])
        raw.send_bytes(body + END if whole else body)
        wait_until(lambda: list(uploads.iterdir()))
        server.stop(timeout)
        server.kept.clear()
        assert not list(uploads.iterdir())


def test_uploads_go_on_while_the_program_stalls(uploads: Path) -> None:
    server = FormServer()
    server.start(0, upload_dir=uploads, upload_threshold=THRESHOLD)
    contents = [random.Random(n).randbytes(300_000) for n in range(50)]
    clients = [RawClient(port_of(server), upgrade=False) for _ in contents]
    for raw, content in zip(clients, contents, strict=True):
        raw.request("POST", "/form", [TYPE], part(f"name=f; filename={len(content)}", content) + END)
    total = sum(map(len, contents))
    wait_until(lambda: sum(path.stat().st_size for path in uploads.iterdir()) == total, what="all is on the disk")
    for raw, content in zip(clients, contents, strict=True):
        tick_until(raw.readable, server)
        assert json.loads(raw.read_answer().body)["files"][0][4] == sha(content)
        raw.socket.close()
    gc.collect()
    assert not list(uploads.iterdir())
    server.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")
def test_a_child_leaves_its_parents_files_alone(forms: Forms) -> None:
    forms.server.kept = []
    forms.post(part("name=f; filename=x", b"y" * 5000) + END)
    request = forms.server.kept.pop()
    with warnings.catch_warnings():
        # Python 3.12 and later warn of forks in a process with threads; the child does as little as possible.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        del request
        os._exit(0)
    os.waitpid(child, 0)
    assert request.files["f"].read() == b"y" * 5000


# Where files are saved


def uploaded(forms: Forms, content: bytes, filename: str = "x.txt") -> UploadedFile:
    forms.server.kept = []
    assert forms.post(part(f'name=f; filename="{filename}"', content) + END).status == 200
    return forms.server.kept.pop().files["f"]


@pytest.mark.parametrize("size", [10, THRESHOLD * 2])
def test_save(forms: Forms, tmp_path: Path, size: int) -> None:
    content = b"y" * size
    file = uploaded(forms, content, "../../a/x.tar.gz")
    assert repr(file).startswith("<UploadedFile f: '../../a/x.tar.gz', ")
    first = file.save(tmp_path)
    assert first == tmp_path / "x.tar.gz" and first.read_bytes() == content
    new = tmp_path / "new"
    new.touch()
    assert first.stat().st_mode == new.stat().st_mode
    assert not list(forms.uploads.iterdir())
    # The content is still to be had, and saved again.
    assert file.read() == content and file.size == size
    assert file.save(str(tmp_path)) == tmp_path / "x.tar-1.gz"
    assert file.save(tmp_path, "other.txt").read_bytes() == content
    assert first.read_bytes() == content
    second = uploaded(forms, b"z" * size)
    assert second.save(tmp_path, "x.tar.gz", overwrite=True) == first
    assert first.read_bytes() == b"z" * size and first.stat().st_mode == new.stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other.txt", "uploads", "x.tar-1.gz", "x.tar.gz"]


@pytest.mark.parametrize("size", [10, THRESHOLD * 2])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_symbolic_link_is_not_followed(forms: Forms, tmp_path: Path, size: int, overwrite: bool) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    inside.mkdir()
    outside.write_bytes(b"precious")
    (inside / "x.txt").symlink_to(outside)
    (inside / "dangling").symlink_to(tmp_path / "nowhere")
    file = uploaded(forms, b"y" * size)
    saved = file.save(inside, overwrite=overwrite)
    assert saved.name == ("x.txt" if overwrite else "x-1.txt") and not saved.is_symlink()
    assert file.save(inside, "dangling", overwrite=overwrite).read_bytes() == b"y" * size
    assert outside.read_bytes() == b"precious" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_save_to_another_file_system(forms: Forms, overwrite: bool) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == forms.uploads.stat().st_dev:
        pytest.skip("no other file system to write to")
    directory = shm / f"pyhv-test-{os.getpid()}"
    directory.mkdir()
    try:
        file = uploaded(forms, b"y" * 5000)
        assert file.save(directory, overwrite=overwrite).read_bytes() == b"y" * 5000
        assert [path.name for path in directory.iterdir()] == ["x.txt"]
        assert file._upload.is_temporary
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("size", [10, THRESHOLD * 2])
def test_a_save_that_fails_leaves_nothing(forms: Forms, tmp_path: Path, size: int) -> None:
    file = uploaded(forms, b"y" * size)
    with pytest.raises(FileNotFoundError):
        file.save(tmp_path / "missing")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        file.save(tmp_path, "taken", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "uploads"]
    assert file.save(tmp_path, "taken").name == "taken-1"


def test_many_threads_save_under_one_name(forms: Forms, tmp_path: Path) -> None:
    files = [uploaded(forms, b"%d" % n * size) for n in range(8) for size in (10, THRESHOLD * 2)]
    directory = tmp_path / "saved"
    directory.mkdir()
    saved: list[tuple[Path, bytes]] = []

    def save(file: UploadedFile) -> None:
        for _ in range(5):
            saved.append((file.save(directory), file.read()))

    threads = [threading.Thread(target=save, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for path, _ in saved}) == len(saved) == 80
    assert all(path.read_bytes() == content for path, content in saved)


@pytest.mark.parametrize(
    ("sent", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("ü 你好.txt", "ü 你好.txt"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\win.ini", "win.ini"),
        ("C:evil.exe", "evil.exe"),
        ("\\\\server\\share\\x", "x"),
        ("a/b\\c", "c"),
        ("", "upload"),
        (".", "upload"),
        ("..", "upload"),
        ("...", "upload"),
        ("dir/", "upload"),
        (".bashrc", "bashrc"),
        (" . x . ", "x"),
        ("x.txt. .", "x.txt"),
        ("a\0b\r\nc\x7f\x85", "abc"),
        ("\u202egpj.exe", "gpj.exe"),
        ("x.txt::$DATA", "x.txt__$DATA"),
        ('a<b>c|d?e*f"g', "a_b_c_d_e_f_g"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("Com1 .tar.gz", "_Com1 .tar.gz"),
        ("lpt\u00b2", "_lpt\u00b2"),
        ("C:aux", "_aux"),
        ("console", "console"),
        ("\ud800", "upload"),
        ("a" * 300 + ".txt", "a" * 251 + ".txt"),
        ("ü" * 200 + ".txt", "ü" * 125 + ".txt"),
        ("a." + "b" * 300, "a." + "b" * 253),
        ("a" * 254 + " b", "a" * 254),
    ],
)
def test_safe_filename(sent: str, safe: str) -> None:
    assert safe_filename(sent) == safe
    assert safe_filename(safe) == safe


PARTS = [
    "..",
    ".",
    "/",
    "\\",
    "\0",
    ":",
    "~",
    "con",
    "nul",
    " ",
    "\r\n",
    "C:",
    "\u2215",
    "\uff0f",
    "ü" * 130,
    ".txt",
    "\u202e",
]


@settings(deadline=None)
@given(name=st.lists(st.sampled_from(PARTS) | st.text(max_size=20), max_size=8).map("".join))
def test_a_name_never_leaves_its_directory(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    safe = safe_filename(name)
    assert safe and len(safe.encode()) <= 255
    assert not safe.startswith((".", " ")) and not safe.endswith((".", " "))
    assert not set(safe) & set('/\\\0:\r\n<>"|?*')
    directory = tmp_path_factory.mktemp("save", numbered=True)
    handle: Any = InMemory(name)
    saved = [UploadedFile(handle).save(directory) for _ in range(2)]
    assert [path.resolve().parent for path in saved] == [directory.resolve()] * 2
    assert {path.name for path in directory.iterdir()} == {path.name for path in saved}
    assert all(len(path.name.encode()) <= 255 for path in saved) and len(set(saved)) == 2
    shutil.rmtree(directory)


class InMemory:
    """What the native side has of a file in memory."""

    is_temporary = False

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def content(self) -> bytes:
        return b"content"


# Compressed bodies


def zlibbed(data: bytes) -> bytes:
    return zlib.compress(data)


def brotli(data: bytes) -> bytes:
    """What a decoder makes `data` of: uncompressed meta-blocks (RFC 7932 section 9.2), for want of a compressor."""
    bits, count = 0, 0

    def put(value: int, width: int) -> None:
        nonlocal bits, count
        bits |= value << count
        count += width

    put(0, 1)  # a window of 16 bits
    for start in range(0, len(data), 65536):
        piece = data[start : start + 65536]
        put(0, 1)  # not the last
        put(0, 2)  # four nibbles of length
        put(len(piece) - 1, 16)
        put(1, 1)  # uncompressed
        count += -count % 8
        bits |= int.from_bytes(piece, "little") << count
        count += 8 * len(piece)
    put(3, 2)  # the last, and empty
    return bits.to_bytes((count + 7) // 8, "little")


def zstd(data: bytes) -> bytes:
    """A frame of raw blocks (RFC 8878 section 3.1)."""
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + b"\x58"  # a window of 2 MiB
    pieces = [data[start : start + 65536] for start in range(0, len(data), 65536)] or [b""]
    for number, piece in enumerate(pieces):
        frame += (len(piece) << 3 | (number == len(pieces) - 1)).to_bytes(3, "little") + piece
    return frame


CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlibbed,
    "br": brotli,
    "zstd": zstd,
    "identity": bytes,
    "identity, gzip": gzip.compress,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_content_codings(forms: Forms, coding: str) -> None:
    data = random.Random(1).randbytes(200_000)
    encode, header = CODINGS[coding], ("Content-Encoding", coding)
    assert forms.post(encode(data), header, path="/body").body == data
    assert forms.post(b"", header, path="/body").body == b""
    assert json.loads(forms.post(encode(b"a=1"), header, URLENCODED).body)["fields"] == [["a", "1"]]
    form = json.loads(forms.post(encode(part("name=f; filename=x", data) + END), header, TYPE).body)
    assert form["files"][0][4] == sha(data)
    if coding != "identity":
        whole = encode(data)
        for bad in (whole[:-1], whole[:1000], whole + b"more", b"not at all", b"\0" * 100):
            answer = forms.post(bad, header, path="/body")
            assert answer.status == 400, bad[:20]


def test_an_unknown_coding(forms: Forms) -> None:
    for coding in ("compress", "gzip, br", "gzip, gzip", "gzip;q=1"):
        answer = forms.post(gzip.compress(b"x"), ("Content-Encoding", coding), path="/body")
        assert answer.status == 415
        assert answer.headers["accept-encoding"] == "gzip, deflate, br, zstd"


def test_a_bomb(forms: Forms) -> None:
    bomb = gzip.compress(bytes(200 << 20), 9)
    before = peak()
    assert forms.post(bomb, ("Content-Encoding", "gzip"), path="/body").status == 413
    assert forms.server.refusals == {"max_body_size": 1}
    inside = part("name=f; filename=x")[:-2]
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = compressor.compress(inside)
    for _ in range(300):
        body += compressor.compress(bytes(1 << 20))
    assert forms.post(body + compressor.flush(), ("Content-Encoding", "gzip"), TYPE).status == 413
    assert forms.server.refusals == {"max_body_size": 1, "max_upload_size": 1}
    assert peak() - before < 64 << 20
    # A frame of zstd with a window of 2 GiB, and endless nothing.
    wide = b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00"
    assert forms.post(wide, ("Content-Encoding", "zstd"), path="/body").status == 400
    with RawClient(forms.port, upgrade=False) as raw:
        raw.request("POST", "/body", [("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")])
        nothing = gzip.compress(b"") * 3000
        send_until_stopped(raw, nothing, 68 << 20)
    wait_until(lambda: forms.server.refusals["max_body_size"] == 2)


# Real senders


def test_curl(forms: Forms, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl")
    path = tmp_path / "a b.bin"
    path.write_bytes(os.urandom(100_000))
    fields = ["-F", "a=1", "-F", f"f=@{path}", "-F", f'g=@{path};filename="q\\"b\\\\c.txt";type=text/x']
    done = subprocess.run([curl, "-sS", *fields, forms.url], capture_output=True, timeout=60, check=True)
    form = json.loads(done.stdout)
    assert form["fields"] == [["a", "1"]]
    digest = sha(path.read_bytes())
    assert form["files"] == [
        ["f", "a b.bin", "application/octet-stream", 100_000, digest],
        ["g", 'q"b\\c.txt', "text/x", 100_000, digest],
    ]
    done = subprocess.run(
        [curl, "-sS", "--data-urlencode", "a=ü&=", forms.url], capture_output=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["fields"] == [["a", "ü&="]]


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=10).filter(
    # What both senders write in a way that no reader can tell from an escape.
    lambda name: "%" not in name and "\\" not in name
)
FIELDS = st.lists(st.tuples(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=30)), max_size=4)
FILES = st.lists(st.tuples(NAMES, NAMES, st.binary(max_size=2 * THRESHOLD)), min_size=1, max_size=4)
RANDOM = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(form: Any, fields: Iterable[tuple[str, str]], files: Iterable[tuple[str, str, bytes]]) -> None:
    assert [tuple(pair) for pair in form["fields"]] == list(fields)
    assert [(file[0], file[1], file[3], file[4]) for file in form["files"]] == [
        (name, filename, len(content), sha(content)) for name, filename, content in files
    ]


@RANDOM
@given(fields=FIELDS, files=FILES)
def test_random_forms_of_httpx(
    forms: Forms, fields: list[tuple[str, str]], files: list[tuple[str, str, bytes]]
) -> None:
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    sent = [(name, (filename, content)) for name, filename, content in files]
    answer = httpx.post(forms.url, data=data, files=sent)
    assert answer.status_code == 200, answer.text
    check(answer.json(), [(name, value) for name, values in data.items() for value in values], files)


@RANDOM
@given(fields=FIELDS, files=FILES)
def test_random_forms_of_aiohttp(
    forms: Forms, fields: list[tuple[str, str]], files: list[tuple[str, str, bytes]]
) -> None:
    async def post() -> Any:
        data = aiohttp.FormData(quote_fields=False)
        for name, value in fields:
            data.add_field(name, value)
        for name, filename, content in files:
            data.add_field(name, io.BytesIO(content), filename=filename, content_type="x/y")
        async with aiohttp.ClientSession() as session, session.post(forms.url, data=data) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    check(asyncio.run(post()), fields, files)


@RANDOM
@given(fields=FIELDS)
def test_random_urlencoded_forms(forms: Forms, fields: list[tuple[str, str]]) -> None:
    async def post() -> Any:
        async with aiohttp.ClientSession() as session, session.post(forms.url, data=aiohttp.FormData(fields)) as answer:
            return await answer.json()

    if fields:
        check(asyncio.run(post()), fields, [])


def test_expect_100_continue(forms: Forms) -> None:
    body = part("name=a", b"1") + END
    with RawClient(forms.port, upgrade=False) as raw:
        raw.request("POST", "/form", [TYPE, ("Content-Length", str(len(body))), ("Expect", "100-continue")])
        assert raw.read_head()[0] == http.client.CONTINUE
        raw.send_bytes(body)
        assert raw.read_answer().status == 200
        raw.request("POST", "/form", [TYPE, ("Content-Length", str(1 << 40)), ("Expect", "100-continue")])
        assert raw.read_answer().status == 413
        assert isinstance(raw.socket, socket.socket)
