"""`pyhv dev-cert`: the files that it writes, what it refuses, and that server, client and openssl agree with them."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyhv.__main__ import main
from support import LIMIT, EchoServer, RawClient, tick_until
from support_tls import Certificates, SecureRawClient, attempt, end, first_certificate, secure_url_of, tls_port_of

FILES = ["pyhv-dev-ca.pem", "pyhv-dev-cert.pem", "pyhv-dev-key.pem"]
HEADS = {
    "pyhv-dev-ca.pem": "-----BEGIN CERTIFICATE-----",
    "pyhv-dev-cert.pem": "-----BEGIN CERTIFICATE-----",
    "pyhv-dev-key.pem": "-----BEGIN PRIVATE KEY-----",
}


def pyhv(*arguments: str | Path, cwd: Path | None = None, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    """`python -m pyhv` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "pyhv", *map(str, arguments)],
        cwd=cwd,
        umask=umask,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def dev_cert(folder: Path, *arguments: str | Path, umask: int = 0o022) -> Certificates:
    """Runs it well, and returns what it wrote."""
    done = pyhv("dev-cert", *arguments, "--dir", folder, umask=umask)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return Certificates(*(folder / name for name in FILES))


def alternative_names(certificate: Path) -> list[tuple[str, str]]:
    """The names that a certificate is for."""
    pem = first_certificate(certificate.read_text())
    alone = certificate.with_name("alone.pem")
    alone.write_text(pem)
    # The only decoder of the standard library; ssl's own tests use it.
    details = ssl._ssl._test_decode_cert(str(alone))  # type: ignore[attr-defined]
    return [*details["subjectAltName"]]


def test_it_writes_three_files_to_the_current_folder(tmp_path: Path) -> None:
    done = pyhv("dev-cert", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    for name, head in HEADS.items():
        assert (tmp_path / name).read_text().startswith(head)
        assert name in done.stdout  # says what to do with it


def test_dir_is_made(tmp_path: Path) -> None:
    made = dev_cert(tmp_path / "a" / "b")
    assert made.cert.exists() and made.key.exists() and made.ca.exists()


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_the_key_is_its_owners_alone(tmp_path: Path, umask: int) -> None:
    made = dev_cert(tmp_path, umask=umask)
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600


def test_force_does_not_inherit_a_readable_key_file(tmp_path: Path) -> None:
    key = tmp_path / FILES[2]
    key.write_text("old")
    key.chmod(0o666)
    made = dev_cert(tmp_path, "--force")
    assert stat.S_IMODE(made.key.stat().st_mode) == 0o600
    assert made.key.read_text().startswith(HEADS[FILES[2]])


def test_the_names_by_default(tmp_path: Path) -> None:
    made = dev_cert(tmp_path)
    assert alternative_names(made.cert) == [
        ("DNS", "localhost"),
        ("IP Address", "127.0.0.1"),
        ("IP Address", "0:0:0:0:0:0:0:1"),
    ]


def test_the_names_asked_for(tmp_path: Path) -> None:
    made = dev_cert(tmp_path, "game.example", "*.lan.example", "192.168.0.7", "fe80::1")
    assert alternative_names(made.cert) == [
        ("DNS", "game.example"),
        ("DNS", "*.lan.example"),
        ("IP Address", "192.168.0.7"),
        ("IP Address", "FE80:0:0:0:0:0:0:1"),
    ]


@pytest.mark.parametrize("name", ["ü.example", "not a name", "", "http://localhost", "localhost:8443", "a..b"])
def test_a_bad_name_is_one_line_and_writes_nothing(tmp_path: Path, name: str) -> None:
    done = pyhv("dev-cert", "--dir", tmp_path / "certificates", "--", "localhost", name)
    assert done.returncode == 1
    assert re.fullmatch(r"pyhv dev-cert: .+\n", done.stderr), done.stderr
    assert f'"{name}"' in done.stderr or repr(name) in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "certificates").exists()


@pytest.mark.parametrize("existing", FILES)
def test_existing_files_are_kept(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    done = pyhv("dev-cert", "--dir", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"pyhv dev-cert: .+\n", done.stderr), done.stderr
    assert str(tmp_path / existing) in done.stderr
    assert "--force" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_force_replaces_all_three(tmp_path: Path) -> None:
    before = [file.read_text() for file in (dev_cert(tmp_path).ca, tmp_path / FILES[1], tmp_path / FILES[2])]
    dev_cert(tmp_path, "--force")
    after = [(tmp_path / name).read_text() for name in FILES]
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = pyhv("dev-cert", "--dir", tmp_path / "file")
    assert done.returncode == 1
    assert re.fullmatch(r"pyhv dev-cert: .+\n", done.stderr), done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_main_returns_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dev-cert", "--dir", str(tmp_path)]) == 0
    assert str(tmp_path / FILES[0]) in capsys.readouterr().out
    assert main(["dev-cert", "--dir", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["-m", "pyhv"], None], ids=["python -m pyhv", "pyhv"])
def test_help(command: list[str] | None) -> None:
    script = Path(sys.executable).with_name("pyhv")
    program = [sys.executable, *command] if command else [str(script)]
    if command is None:
        assert script.exists(), "the entry point is not installed"
    for arguments, words in ((["--help"], ["dev-cert"]), (["dev-cert", "--help"], ["--dir", "--force", "localhost"])):
        done = subprocess.run(
            [*program, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=os.sep
        )
        assert done.returncode == 0, done.stderr
        for word in ["usage: pyhv", *words]:
            assert word in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["dev-cert", "--nonsense"]])
def test_a_wrong_command_line_is_refused(arguments: list[str]) -> None:
    done = pyhv(*arguments)
    assert done.returncode == 2
    assert "usage: pyhv" in done.stderr
    assert "Traceback" not in done.stderr


# What others make of the files


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_openssl_verifies_each_name_and_no_other(tmp_path: Path) -> None:
    made = dev_cert(tmp_path, "localhost", "game.example", "127.0.0.1", "::1")

    def verify(*arguments: str) -> int:
        command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(made.ca), *arguments]
        done = subprocess.run([*command, str(made.cert)], capture_output=True, text=True, timeout=LIMIT, check=False)
        return done.returncode

    for name in ("localhost", "game.example"):
        assert verify("-verify_hostname", name) == 0
    for address in ("127.0.0.1", "::1"):
        assert verify("-verify_ip", address) == 0
    assert verify("-verify_hostname", "other.example") != 0
    assert verify("-verify_ip", "127.0.0.2") != 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")
def test_it_is_valid_now_and_not_longer_than_browsers_allow(tmp_path: Path) -> None:
    made = dev_cert(tmp_path)
    for file in (made.ca, made.cert):
        dates = subprocess.run(
            ["openssl", "x509", "-in", str(file), "-noout", "-startdate", "-enddate"],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        ).stdout
        start, finish = (ssl.cert_time_to_seconds(line.split("=")[1]) for line in dates.splitlines())
        assert start < time.time() < finish
        assert finish - start <= 398 * 86_400 + 1


def test_the_key_belongs_to_the_certificate(tmp_path: Path) -> None:
    made = dev_cert(tmp_path)
    ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(made.cert, made.key)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_server_and_client_end_to_end(tmp_path: Path, host: str) -> None:
    made = dev_cert(tmp_path)
    with EchoServer() as server:
        server.start(0, **made.settings)
        client = attempt(secure_url_of(server, host=host), server, ca_file=made.ca)
        assert client.error is None
        assert client.send("hello")
        tick_until(lambda: client.received, client, server)
        assert client.received == ["hello"]
        end(client, server)


def test_over_ipv6(tmp_path: Path) -> None:
    made = dev_cert(tmp_path)
    with EchoServer() as server:
        try:
            server.start(0, "::1", **made.settings)
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        client = attempt(secure_url_of(server, host="[::1]"), server, ca_file=made.ca)
        assert client.error is None
        end(client, server)


def test_pythons_ssl_verifies_it(tmp_path: Path) -> None:
    made = dev_cert(tmp_path)
    with EchoServer() as server:
        server.start(0, **made.settings)
        with SecureRawClient(tls_port_of(server), made.context()) as raw:
            assert isinstance(raw, RawClient)
            raw.send_text("hello")
            tick_until(raw.readable, server)
            assert raw.read_message() == "hello"
