"""`pyhv connect`: on a pseudo-terminal whose screen an emulator shows, and between pipes."""

from __future__ import annotations

import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyhv import HvWebServer, WebSocketChannel, WsOpcode
from support import (
    HOST,
    LIMIT,
    Background,
    EchoServer,
    RawServer,
    RecordingServer,
    ServerThread,
    python_environment,
    wait_until,
)
from support_cli import Command, Terminal, pyhv
from support_tls import make_certificates, tls_port_of

Serve = Callable[..., ServerThread]


def url(server: ServerThread, path: str = "/") -> str:
    return f"ws://{HOST}:{server.port}{path}"


@pytest.fixture
def echo(serve: Serve) -> ServerThread:
    return serve(EchoServer())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the history is kept; nobody's real one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "pyhv"


@contextmanager
def terminal(*arguments: str | Path, **environment: str) -> Iterator[Terminal]:
    """`pyhv connect` on a terminal, with its prompt there."""
    with Terminal("connect", *arguments, environment=environment) as running:
        running.wait_for_rows(["> ".rstrip()])
        yield running


def channel_of(server: ServerThread) -> WebSocketChannel:
    return wait_until(lambda: server.server.channels, what="a channel opens")[0]


def sent_to(server: ServerThread) -> list[object]:
    """The messages that a recording server got."""
    assert isinstance(server.server, RecordingServer)
    return server.server.record.values("message")


# On a terminal


def test_a_conversation(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo, "/chat")) as t:
        assert t.rows[0] == f"connected to {url(echo, '/chat')} (compressed)"
        t.type("hello\r")
        t.wait_for_rows(["> hello", "< hello", ">"])
        t.type("\x04")
        assert t.finish() == 0
        assert t.rows[-1] == "closed (1000)"
        assert t.is_cooked


def test_the_line_stays_whole_while_messages_arrive(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        t.type("half a lin")
        t.wait_for_rows(["> half a lin"])
        t.type("\x1b[D\x1b[D\x1b[D")
        for number in range(50):
            channel_of(echo).send(f"news {number}")
        rows = t.wait_for_rows(["< news 49", "> half a lin"])
        assert rows[:-1][-20:] == [f"< news {number}" for number in range(30, 50)]
        wait_for_cursor(t, (len(rows) - 1, len("> half a ")))
        t.type("\x05e\r")
        t.wait_for_rows(["> half a line", "< half a line", ">"])
    assert sent_to(echo) == ["half a line"]


def wait_for_cursor(t: Terminal, place: tuple[int, int]) -> None:
    t.wait_for_rows(lambda _rows: t.cursor == place)


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("ac\x1b[Db", "abc"),
        ("bc\x01a\x05d", "abcd"),
        ("abx\x7fc", "abc"),
        ("xabc\x1b[H\x1b[3~", "abc"),
        ("one two\x17three", "one three"),
        ("one two\x15abc", "abc"),
        ("abcdef\x02\x02\x02\x0b", "abc"),
        ("one, two\x1bb\x0b\x01\x19\x05\x7f", "twoone,"),
        ("ä€😀\x7f!", "ä€!"),
        ("a\x1b[1;5Db\x1b[C\x1bOFc", "bac"),
        ("a\x1b[99;99zb", "ab"),
    ],
)
def test_editing(echo: ServerThread, home: Path, typed: str, sent: str) -> None:
    with terminal(url(echo)) as t:
        t.type(f"{typed}\r")
        t.wait_for_rows([f"> {sent}", f"< {sent}", ">"])
    assert sent_to(echo) == [sent]


def test_keys_that_come_in_pieces(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        for byte in "aé\x1b[Db\r".encode():
            os.write(t._read, bytes([byte]))
        t.wait_for_rows(["< abé", ">"])


def test_a_long_line_scrolls_within_its_row(echo: ServerThread, home: Path) -> None:
    long = "".join(str(number % 10) for number in range(200))
    with terminal(url(echo)) as t:
        before = len(t.rows)
        t.type(long)
        rows = t.wait_for_rows(lambda rows: rows[-1].endswith(long[-70:]))
        assert len(rows) == before
        assert len(rows[-1]) == 79
        channel_of(echo).send("news")
        t.wait_for_rows(lambda rows: rows[-2] == "< news" and rows[-1].endswith(long[-70:]))
        t.type("\x01")
        t.wait_for_rows(lambda rows: rows[-1] == "> " + long[:77])
        wait_for_cursor(t, (before, 2))
        t.resize(40)
        t.wait_for_rows(lambda rows: rows[-1] == "> " + long[:37])
        t.type("\r")
        wait_until(lambda: sent_to(echo) == [long])


def test_wide_characters_take_two_columns(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        t.type("日本語x\x1b[D\x1b[D")
        t.wait_for_rows(lambda rows: rows[-1].replace(" ", "") == ">日本語x")
        wait_for_cursor(t, (1, 2 + 4))


def test_pasted_lines_are_one_message(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        assert "\x1b[?2004h" in t.output
        t.type("\x1b[200~one\rtwo\x1b[201~\r")
        t.wait_for_rows(["> one", "  two", "< one", "  two", ">"])
        t.type("\x04")
        t.finish()
        assert t.output.rindex("\x1b[?2004l") > t.output.rindex("\x1b[?2004h")
    assert sent_to(echo) == ["one\ntwo"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"< \x1b]0;title\x07\x1b[2J"),
        ("a\rb\x08c\x7f", r"< a\rb\x08c\x7f"),
        ("\x9b31mred\x9c", r"< \x9b31mred\x9c"),
        ("exe.\u202egpj", r"< exe.\u202egpj"),
        ("a\tb", "< a   b"),
    ],
)
def test_messages_cannot_steer_the_terminal(serve: Serve, home: Path, message: str, shown: str) -> None:
    server = serve(RecordingServer())
    with terminal(url(server)) as t:
        channel_of(server).send(message)
        t.wait_for_rows([shown, ">"])
        ours = t.output.replace("\x1b[K", "").replace("\x1b[?2004h", "")
        for style in ("\x1b[0m", "\x1b[2m", "\x1b[7m", "\x1b[32m", "\x1b[36m"):
            ours = ours.replace(style, "")
        assert "\x1b" not in ours and "\x9b" not in ours and "\u202e" not in ours and "\x07" not in ours


def test_a_message_cannot_look_like_another(serve: Serve, home: Path) -> None:
    server = serve(RecordingServer())
    with terminal(url(server)) as t:
        channel_of(server).send("one\n< two\n> three")
        t.wait_for_rows(["< one", "  < two", "  > three", ">"])
        channel_of(server).close(1000, "\x1b[2Jbye")
        assert t.finish() == 0
        assert t.rows[-1] == r"the server closed (1000 \x1b[2Jbye)"


def test_json_is_laid_out(echo: ServerThread, home: Path) -> None:
    text = '{"a": [1.50, true], "a": {}, "b": "\\u001b[2J"}'
    with terminal(url(echo)) as t:
        t.type(f"{text}\r")
        t.wait_for_rows(
            [
                "< {",
                '    "a": [',
                "      1.50,",
                "      true",
                "    ],",
                '    "a": {},',
                r'    "b": "\u001b[2J"',
                "  }",
                ">",
            ]
        )
    with terminal(url(echo), "--raw") as t:
        t.type(f"{text}\r")
        t.wait_for_rows([f"< {text}", ">"])


def test_commands(serve: Serve, home: Path, tmp_path: Path) -> None:
    server = serve(EchoServer())
    (tmp_path / "data").write_bytes(bytes(range(20)))
    with terminal(url(server)) as t:
        t.type("/binary 0a 0b\r")
        t.wait_for_rows(["< binary, 2 bytes", f"  00000000  0a 0b{' ' * 45}|..|", ">"])
        t.type(f"/binary @{tmp_path / 'data'}\r")
        t.wait_for_rows(lambda rows: rows[-2].startswith("  00000010  10 11 12 13"))
        t.type("/binary xyz\r")
        t.wait_for_rows(["/binary 0a0b, in hexadecimal digits, or /binary @FILE", ">"])
        t.type("/binary @/nonexistent\r")
        t.wait_for_rows(["[Errno 2] No such file or directory: '/nonexistent'", ">"])
        t.type("/close 999\r")
        t.wait_for_rows(lambda rows: "999" in rows[-2] and rows[-1] == ">")
        t.type("//slash\r")
        t.wait_for_rows(["< /slash", ">"])
        t.type("/nonsense\r")
        t.wait_for_rows(lambda rows: any(row.startswith("there is no /nonsense") for row in rows))
        t.type("/headers\r")
        t.wait_for_rows(lambda rows: any(row.startswith("  upgrade: websocket") for row in rows))
        t.type("/close 4000 enough of it\r")
        assert t.finish() == 0
    assert sent_to(server) == [b"\x0a\x0b", bytes(range(20)), "/slash"]
    assert isinstance(server.server, RecordingServer)
    wait_until(lambda: server.server.record.values("close") == [4000])  # type: ignore[attr-defined]


def test_ping(home: Path) -> None:
    with (
        RawServer() as server,
        Terminal("connect", server.url, "--ping-interval", "0") as t,
        server.accept_websocket() as peer,
    ):
        t.wait_for_rows([">"])
        t.type("/ping are you there\r")
        frame = peer.read_frame()
        assert (frame.opcode, frame.payload) == (WsOpcode.PING, b"are you there")
        t.wait_for_rows(["ping sent", ">"])


# How it ends


@pytest.mark.parametrize(("code", "status"), [(1000, 0), (1001, 3), (1011, 3), (4000, 3)])
def test_the_server_closes(serve: Serve, home: Path, code: int, status: int) -> None:
    server = serve(RecordingServer())
    with terminal(url(server)) as t:
        channel_of(server).close(code, "so it is")
        assert t.finish() == status
        assert t.rows[-1] == f"the server closed ({code} so it is)"
        assert t.is_cooked


def test_the_connection_is_lost(home: Path) -> None:
    with RawServer() as server, Terminal("connect", server.url) as t:
        server.accept_websocket().reset()
        assert t.finish() == 3
        assert "lost the connection (1006" in t.rows[-1]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(serve: Serve, home: Path, number: int, status: int) -> None:
    server = serve(RecordingServer())
    with terminal(url(server)) as t:
        t.type("half")
        t.wait_for_rows(["> half"])
        if number == signal.SIGINT:
            t.type("\x03")
        else:
            t.send_signal(number)
        assert t.finish() == status
        assert t.is_cooked
    assert isinstance(server.server, RecordingServer)
    # It is told, with a close frame.
    wait_until(lambda: server.server.record.values("close") == [1000])  # type: ignore[attr-defined]
    assert sent_to(server) == []


def test_it_goes_on_after_a_stop(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        t.type("half")
        t.wait_for_rows(["> half"])
        t.send_signal(signal.SIGSTOP)
        t.cook()  # as the shell does, in whose hands the terminal is now
        t.send_signal(signal.SIGCONT)
        wait_until(lambda: not t.is_cooked, what="the modes are set again")
        t.type(" and half\r")
        t.wait_for_rows(["< half and half", ">"])


# History


def test_history_outlives_the_command(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo)) as t:
        for line in ("first", "second", " secret", "back\\slash"):
            t.type(f"{line}\r")
            t.wait_for_rows([f"< {line}", ">"])
        t.type("new\x1b[A\x1b[A\x1b[B\x1b[B")
        t.wait_for_rows(["> new"])
        t.type("\x15\x1b[A\x1b[A!\r")
        t.wait_for_rows(["< second!", ">"])
        t.type("\x04")
        t.finish()
    file = home / "connect_history"
    assert file.read_text() == "first\nsecond\nback\\\\slash\nsecond!\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with terminal(url(echo)) as t:
        t.type("\x1b[A\x1b[A\r")
        t.wait_for_rows(["< back\\slash", ">"])


def test_no_history(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo), "--no-history") as t:
        t.type("hello\r")
        t.wait_for_rows(["< hello", ">"])
        t.type("\x1b[A")
        t.wait_for_rows(["> hello"])
    assert not home.exists()


def test_a_history_that_cannot_be_kept_is_told_and_no_more(echo: ServerThread, tmp_path: Path) -> None:
    (tmp_path / "pyhv").write_text("in the way")
    with Terminal("connect", url(echo), environment={"XDG_STATE_HOME": str(tmp_path)}) as t:
        t.wait_for_rows(lambda rows: any("what is typed is not kept" in row for row in rows))
        t.type("hello\r")
        t.wait_for_rows(["< hello", ">"])


# Terminals that can less


def test_no_color(echo: ServerThread, home: Path) -> None:
    with terminal(url(echo), NO_COLOR="1") as t:
        t.type('{"a":1}\r')
        t.wait_for_rows(["< {", '    "a": 1', "  }", ">"])
        assert "m" not in {part[-1:] for part in t.output.split("\x1b[")[1:]}
        assert "\x1b[3" not in t.output and "\x1b[0m" not in t.output


def test_a_dumb_terminal_gets_no_escapes(echo: ServerThread, home: Path) -> None:
    with Terminal("connect", url(echo), environment={"TERM": "dumb"}) as t:
        t.wait_for("connected")
        t.type("hello\n/ping\n")
        t.wait_for("ping sent")
        t.wait_for(lambda output: output.count("hello") == 2)  # the terminal's echo, and the message
        t.type("\x04")
        assert t.finish() == 0
        assert "\x1b" not in t.output


# Between pipes


def test_lines_of_a_pipe_are_messages_as_they_stand(echo: ServerThread) -> None:
    done = pyhv("connect", url(echo), "--wait", "0.2", stdin='/ping\n//x\n{"a":1}\r\n\nä\nlast')
    assert done.returncode == 0
    assert done.stdout == '/ping\n//x\n{"a":1}\n\nä\nlast\n'
    assert done.stderr == f"connected to {url(echo)} (compressed)\nclosed (1000)\n"
    assert sent_to(echo) == ["/ping", "//x", '{"a":1}', "", "ä", "last"]


def test_what_goes_to_a_pipe_is_as_it_came(serve: Serve) -> None:
    server = serve(RecordingServer())
    with Command("connect", url(server), "--quiet", "--no-input") as command:
        channel = channel_of(server)
        channel.send("\x1b[31m\u202e")
        channel.send('{"a":1}')
        channel.send(b"\x00")
        channel.close()
        assert command.finish() == 0
        dump = f"binary, 1 bytes\n00000000  00{' ' * 48}|.|\n"
        assert command.output == '\x1b[31m\u202e\n{"a":1}\n' + dump


def test_a_large_input(echo: ServerThread) -> None:
    line = "x" * 1000
    done = pyhv("connect", url(echo), "--quiet", "--wait", "0.5", stdin=f"{line}\n" * 40_000)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{line}\n" * 40_000


def test_input_waits_for_a_server_that_does_not_read() -> None:
    line = b"x" * 9_999 + b"\n"
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        with (
            RawServer(receive_buffer=65_536) as server,
            Command("connect", server.url, "--no-compression", stdin=read) as command,
        ):
            peer = server.accept_websocket()
            data, written = b"", 0
            # Until nobody takes any more for a second.
            while select.select([], [write], [], 1.0)[1]:
                data = data or line
                count = os.write(write, data)
                data, written = data[count:], written + count
                assert written < 12 << 20, "it is kept in memory"
            assert "closed" not in command.output
            with peer:
                assert peer.read_message() == "x" * 9_999
    finally:
        os.close(read)
        os.close(write)


def test_messages_of_the_command_line_and_once(echo: ServerThread) -> None:
    done = pyhv("connect", url(echo), "-m", "/one", "-m", "two", "--once", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "/one\n", "")


def test_once_without_an_answer(serve: Serve) -> None:
    server = serve(RecordingServer())
    done = pyhv("connect", url(server), "-m", "hello", "--once", "--timeout", "0.3")
    assert done.returncode == 4
    assert done.stderr.endswith("pyhv connect: no answer within 0.3 s\n")


def test_once_and_the_server_closes_first(serve: Serve) -> None:
    class Closing(RecordingServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            channel.close(1011)

    assert pyhv("connect", url(serve(Closing())), "--once").returncode == 3


def test_json_on_a_pipe_on_demand(echo: ServerThread) -> None:
    done = pyhv("connect", url(echo), "-1q", "--json", "-m", '{"a":[]}')
    assert done.stdout == '{\n  "a": []\n}\n'
    done = pyhv("connect", url(echo), "-1q", "--json", "--color", "always", "-m", '{"a":[]}')
    assert done.stdout == '{\n  \x1b[34m"a"\x1b[0m: []\n}\n'


def test_timestamps(echo: ServerThread) -> None:
    done = pyhv("connect", url(echo), "-1qt", "-m", "hello")
    stamp, text = done.stdout.split()
    assert text == "hello"
    assert [len(part) for part in stamp.replace(".", ":").split(":")] == [2, 2, 2, 3]


def test_what_the_handshake_says(serve: Serve) -> None:
    seen: list[WebSocketChannel] = []

    class Server(EchoServer):
        def on_ws_open(self, channel: WebSocketChannel, url: str) -> None:
            seen.append(channel)

    server = serve(Server(), subprotocols=["v1", "v2"], allowed_origins=["https://example.com"])
    arguments = ["-H", "X-Token: a:b", "--origin", "https://example.com", "-s", "v9", "-s", "v2", "--no-compression"]
    done = pyhv("connect", url(server), *arguments, "-v", "-m", "x", "--once")
    assert done.returncode == 0
    assert f"connected to {url(server)} (subprotocol v2)\n" in done.stderr
    assert "\n  sec-websocket-protocol: v2\n" in done.stderr
    assert seen[0].headers["X-Token"] == "a:b"
    assert seen[0].headers["Sec-WebSocket-Protocol"] == "v9, v2"
    assert not seen[0].is_compressed


@pytest.mark.parametrize("given", ["localhost:{port}/x", "http://localhost:{port}/x", ":{port}/x"])
def test_urls_that_people_type(serve: Serve, given: str) -> None:
    server = serve(EchoServer())
    done = pyhv("connect", given.format(port=server.port), "-m", "x", "--once")
    assert done.returncode == 0, done.stderr
    assert isinstance(server.server, RecordingServer)
    assert server.server.record.values("open") == ["/x"]


def test_nobody_reads_the_output(serve: Serve) -> None:
    server = serve(RecordingServer())
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pyhv", "connect", url(server), "--no-input"],
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        env=python_environment(),
    )
    os.close(write)
    try:
        channel = channel_of(server)
        channel.send("hello")
        assert os.read(read, 100) == b"hello\n"
        os.close(read)
        channel.send("is anybody there?")
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 141
        assert said.decode().splitlines() == [f"connected to {url(server)} (compressed)"]
    finally:
        process.kill()
        process.wait()


def test_without_a_standard_input(echo: ServerThread) -> None:
    command = f'exec "{sys.executable}" -m pyhv connect {url(echo)} -m hello --wait 0.3 <&-'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=python_environment(), timeout=LIMIT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "hello\n")


# What cannot be


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    done = pyhv("connect", f"ws://{HOST}:{port}/")
    assert done.returncode == 1
    assert done.stderr.startswith("pyhv connect: ") and "refused" in done.stderr.lower()
    assert done.stderr.count("\n") == 1


def test_no_websocket_there(serve: Serve) -> None:
    class Server(HvWebServer):
        def on_ws_upgrade(self, request: object) -> int:
            return 404

    done = pyhv("connect", url(serve(Server())))
    assert done.returncode == 1
    assert "404" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://localhost/"],
        ["ws://"],
        ["ws://localhost:99999/"],
        ["ws://localhost/#fragment"],
        ["ws://localhost/", "-H", "no colon"],
        ["ws://localhost/", "-H", "Upgrade: x"],
        ["ws://localhost/", "-H", "X: \x01"],
        ["ws://localhost/", "--ca", "x.pem"],
        ["ws://localhost/", "--insecure"],
        ["wss://localhost/", "--key", "x.pem"],
        ["wss://localhost/", "--ca", "x.pem", "--insecure"],
        ["ws://localhost/", "--timeout", "0"],
        ["ws://localhost/", "--json", "--raw"],
        [],
    ],
)
def test_a_wrong_command_line(arguments: list[str]) -> None:
    done = pyhv("connect", *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("pyhv connect: ")
    assert done.stdout == ""


def test_certificates(serve: Serve, tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    server = serve(EchoServer(), **made.settings)
    secure = f"wss://{HOST}:{tls_port_of(server.server)}/"
    send = ("-m", "hello", "-1q")
    done = pyhv("connect", secure, *send)
    assert done.returncode == 1
    assert "--ca FILE" in done.stderr and "--insecure" in done.stderr
    trusts: list[list[str | Path]] = [["--ca", made.ca], ["--fingerprint", made.fingerprint], ["--insecure"], ["-k"]]
    for trust in trusts:
        done = pyhv("connect", secure, *trust, *send)
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
    done = pyhv("connect", secure, "--ca", tmp_path / "missing.pem", *send)
    assert done.returncode == 1
    assert "missing.pem" in done.stderr


def test_a_client_certificate(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    context.load_verify_locations(made.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(LIMIT)

        def serve_one() -> dict[str, object]:
            plain, _ = listener.accept()
            plain.settimeout(LIMIT)
            with context.wrap_socket(plain, server_side=True) as secure:
                return dict(secure.getpeercert() or {})

        server = Background(serve_one)
        port = listener.getsockname()[1]
        arguments: list[str | Path] = ["--ca", made.ca, "--cert", made.cert, "--key", made.key]
        done = pyhv("connect", f"wss://{HOST}:{port}/", *arguments)
        assert done.returncode == 1  # it is no WebSocket server
        assert "subjectAltName" in server.result()
