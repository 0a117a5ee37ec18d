"""nginx for tests: in the foreground, unprivileged, with all of its files in one folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import LIMIT, wait_until

# Debian has it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + os.pathsep + "/usr/sbin")

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""


@contextmanager
def nginx(folder: Path, http: str, answers: Callable[[], object]) -> Iterator[None]:
    """nginx with `http` as the inside of its http block, until the end. Waits until `answers()` raises no OSError."""
    assert NGINX is not None
    configuration = folder / "nginx.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, http=http), encoding="utf-8")
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )

    def listens() -> bool:
        assert process.poll() is None, (folder / "output").read_text() + (folder / "error.log").read_text()
        try:
            answers()
        except OSError:
            return False
        return True

    try:
        wait_until(listens, what="nginx listens")
        yield
    finally:
        process.terminate()
        process.wait(LIMIT)
