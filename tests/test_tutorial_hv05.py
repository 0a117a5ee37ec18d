"""The dasHV tutorial HV-05, "Cookies and form / file upload", row by row with pyHV's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import HttpClient, HttpRequest, HttpResponse, HvWebServer, UploadedFile
from support import HOST, ServerThread, http, serving, tick_until, wait_until

pytestmark = pytest.mark.usefixtures("no_proxy")

FORM = "application/x-www-form-urlencoded"


class CookieFormServer(HvWebServer):
    """The tutorial's server; it remembers the files that it got."""

    def __init__(self, uploads: Path) -> None:
        self.uploads = uploads
        self.files: list[UploadedFile] = []
        self.errors: list[Exception] = []

    def on_init(self) -> None:
        self.get("/set-cookies", self.set_cookies)
        self.get("/read-cookies", lambda req, resp: resp.json(req.cookies))
        self.post("/logout", self.logout)
        self.post("/upload", self.upload)
        self.post("/save/:how", self.save)
        self.post("/login", lambda req, resp: resp.json(req.form().pairs()))

    def on_error(self, exc: Exception) -> None:
        self.errors.append(exc)

    def set_cookies(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.add_cookie("session", "abc123")
        resp.add_cookie("prefs", "dark-mode", max_age=3600, http_only=True)
        return resp.text("cookies set")

    def logout(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        resp.delete_cookie("session")
        return HTTPStatus.NO_CONTENT

    def upload(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        self.files += [file for _, file in req.files.pairs()]
        files = [[name, f.filename, f.content_type, f.size, f.read().hex()[:64]] for name, f in req.files.pairs()]
        return resp.json({"fields": req.form().pairs(), "files": files, "body": req.text()})

    def save(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        overwrite = req.params["how"] == "overwrite"
        path = req.files["attachment"].save(self.uploads, overwrite=overwrite)
        return resp.text(str(path.relative_to(self.uploads)), 201)


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


@pytest.fixture
def server(serve: Callable[..., ServerThread], uploads: Path) -> CookieFormServer:
    server = CookieFormServer(uploads)
    serve(server)
    return server


@pytest.fixture
def base(server: CookieFormServer) -> str:
    return f"http://{HOST}:{server.port}"


# 1: cookies


def test_cookies_as_they_are_set(base: str) -> None:
    answer = pyhv.get(f"{base}/set-cookies")
    assert answer.headers.get_all("Set-Cookie") == [
        "session=abc123; Path=/; SameSite=Lax",
        "prefs=dark-mode; Max-Age=3600; Path=/; HttpOnly; SameSite=Lax",
    ]
    assert answer.cookies == {"session": "abc123", "prefs": "dark-mode"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": None, "same_site": None}, "n=v"),
        ({"domain": "example.com", "path": "/app"}, "n=v; Domain=example.com; Path=/app; SameSite=Lax"),
        ({"secure": True, "same_site": "none"}, "n=v; Path=/; Secure; SameSite=None"),
        ({"expires": 0}, "n=v; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; SameSite=Lax"),
    ],
)
def test_attributes(options: dict[str, Any], expected: str) -> None:
    resp = HttpResponse()
    resp.add_cookie("n", "v", **options)
    assert resp.headers["Set-Cookie"] == expected


@pytest.mark.parametrize(
    ("name", "value", "options", "why"),
    [
        ("n", "two words", {}, "spaces"),
        ("n", "a;b", {}, "semicolons"),
        ("n", "ü", {}, "ASCII"),
        ("a b", "v", {}, "name"),
        ("n", "v", {"same_site": "none"}, "secure=True"),
        ("n", "v", {"domain": "no domain"}, "domain="),
    ],
)
def test_what_a_browser_would_not_take_raises(name: str, value: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        HttpResponse().add_cookie(name, value, **options)


def test_cookies_as_they_are_read(server: CookieFormServer, base: str) -> None:
    assert pyhv.get(f"{base}/read-cookies").json() == {}
    sent = {"token": "xyz789", "lang": "en", "theme": "dark"}
    assert pyhv.get(f"{base}/read-cookies", cookies=sent).json() == sent
    by_hand = 'a=1; b="two"; no pair; a=3; c=ü'.encode().decode("latin-1")
    answer = http(server.port or 0, "GET", "/read-cookies", [("Cookie", by_hand)])
    assert answer.body.decode() == '{"a":"1","b":"two","c":"ü"}'


def test_a_client_keeps_cookies_until_they_are_deleted(base: str) -> None:
    def ask(method: str, path: str) -> pyhv.Response:
        call = client.request(method, base + path)
        tick_until(lambda: call.is_done, client)
        assert call.response is not None, call.error
        return call.response

    with HttpClient() as client:
        ask("GET", "/set-cookies")
        assert ask("GET", "/read-cookies").json() == {"session": "abc123", "prefs": "dark-mode"}
        assert "session=; " in ask("POST", "/logout").headers["Set-Cookie"]
        assert ask("GET", "/read-cookies").json() == {"prefs": "dark-mode"}


# 2: forms with files


def test_fields_and_files(base: str) -> None:
    answer = pyhv.post(
        f"{base}/upload",
        form={"title": "My Document", "tag": ["a", "b"], "empty": ""},
        files=[("attachment", ("note.txt", b"text")), ("attachment", ("dätä.bin", b"\x00\xff", "x/y"))],
    )
    said = answer.json()
    assert said["fields"] == [["title", "My Document"], ["tag", "a"], ["tag", "b"], ["empty", ""]]
    assert said["files"] == [
        ["attachment", "note.txt", "text/plain", 4, b"text".hex()],
        ["attachment", "dätä.bin", "x/y", 2, "00ff"],
    ]
    assert said["body"] == "", "what was taken apart is not there twice"


def test_a_file_is_saved_under_its_name_and_never_over_another(base: str, uploads: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    saved = []
    for text in ("one", "two", "three"):
        note.write_text(text)
        saved.append(pyhv.post(f"{base}/save/new", files={"attachment": note}).raise_for_status().text())
    assert saved == ["note.txt", "note-1.txt", "note-2.txt"]
    assert [(uploads / name).read_text() for name in saved] == ["one", "two", "three"]
    answer = pyhv.post(f"{base}/save/overwrite", files={"attachment": ("note.txt", b"four")})
    assert (answer.text(), (uploads / "note.txt").read_text()) == ("note.txt", "four")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\passwd", "C:\\passwd", "..passwd"])
def test_a_name_does_not_lead_out_of_the_directory(base: str, uploads: Path, tmp_path: Path, name: str) -> None:
    # By hand: a client would not send such a name.
    body = (
        f'--x\r\nContent-Disposition: form-data; name="attachment"; filename="{name}"\r\n\r\nroot\r\n--x--\r\n'
    ).encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert pyhv.post(f"{base}/save/new", data=body, headers=headers).text() == "passwd"
    assert [path.name for path in uploads.iterdir()] == ["passwd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["uploads"]


def test_a_file_that_is_not_there_is_an_error_of_the_program(server: CookieFormServer, base: str) -> None:
    """`req.files` is a mapping: `in` and `get` would tell."""
    assert pyhv.post(f"{base}/save/new", files={"other": ("x", b"")}).status == 500
    wait_until(lambda: server.errors)
    assert isinstance(server.errors[0], KeyError)


# 3: URL-encoded forms


def test_a_url_encoded_form(server: CookieFormServer, base: str) -> None:
    answer = pyhv.post(f"{base}/login", form={"username": "admin", "password": "a&b=c d+ü"})
    assert answer.json() == [["username", "admin"], ["password", "a&b=c d+ü"]]
    raw = http(server.port or 0, "POST", "/login", [("Content-Type", FORM)], b"a=1&a=2&b&=c&%zz=%41")
    assert raw.body == b'[["a","1"],["a","2"],["b",""],["","c"],["%zz","A"]]'


@pytest.mark.parametrize(("kind", "body"), [("application/json", b"{}"), ("text/plain", b"a=b"), (None, b"a=b")])
def test_what_is_no_form_is_400(server: CookieFormServer, kind: str | None, body: bytes) -> None:
    answer = http(server.port or 0, "POST", "/login", [("Content-Type", kind)] if kind else [], body)
    assert answer.status == 400
    assert server.errors == []


def test_a_multipart_form_that_is_cut_short_is_400(server: CookieFormServer) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nhalf of it'
    answer = http(server.port or 0, "POST", "/login", [("Content-Type", "multipart/form-data; boundary=x")], body)
    assert answer.status == 400
    assert server.errors == []


# Beyond the original: limits, and where large files wait


@pytest.fixture
def limited(tmp_path: Path, uploads: Path) -> Iterator[CookieFormServer]:
    server = CookieFormServer(uploads)
    (tmp_path / "temporary").mkdir()
    settings: dict[str, Any] = {
        "max_upload_size": 500_000,
        "max_form_parts": 3,
        "max_form_field_size": 1_000,
        "upload_threshold": 10_000,
        "upload_dir": tmp_path / "temporary",
    }
    with serving(server, **settings):
        yield server


def post(server: CookieFormServer, **options: Any) -> pyhv.Response:
    return pyhv.post(f"http://{HOST}:{server.port}/upload", **options)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"files": {"f": ("f", bytes(600_000))}}, "max_upload_size=500000"),
        ({"files": {"f": ("f", b"")}, "form": {"a": "1", "b": "2", "c": "3"}}, "max_form_parts=3"),
        ({"files": {"f": ("f", b"")}, "form": {"a": "x" * 1_001}}, "max_form_field_size=1000"),
    ],
)
def test_what_is_over_a_limit_is_413_and_logged(
    limited: CookieFormServer, options: dict[str, Any], limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(limited, **options).status == 413
    wait_until(lambda: limit in caplog.text)
    assert limited.files == []
    assert post(limited, files={"f": ("f", b"")}).status == 200


def test_large_files_wait_in_temporary_ones(limited: CookieFormServer, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    sizes = [10_000, 10_001, 300_000]
    answer = post(limited, files=[("f", (str(size), bytes(size))) for size in sizes])
    assert [file[3] for file in answer.json()["files"]] == sizes
    assert len(list(temporary.iterdir())) == 2
    saved = limited.files[2].save(limited.uploads)
    assert (saved.name, saved.stat().st_size) == ("300000", 300_000)
    assert len(list(temporary.iterdir())) == 1, "it was moved"
    limited.files.clear()
    wait_until(lambda: not list(temporary.iterdir()), what="nobody holds the last one any more")
    assert saved.exists()


def test_a_file_of_any_size_is_sent_from_disk(base: str, uploads: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(30 << 20)
    answer = pyhv.post(f"{base}/save/new", files={"attachment": large})
    assert (answer.status, answer.text()) == (201, "large.bin")
    assert (uploads / "large.bin").stat().st_size == 30 << 20
