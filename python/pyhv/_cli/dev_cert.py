"""`pyhv dev-cert`: a certificate for development."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pyhv import _native
from pyhv._cli.output import CommandError

if TYPE_CHECKING:
    from pyhv._cli.options import Commands

#: What a certificate is for, unless names are given.
NAMES = ("localhost", "127.0.0.1", "::1")


def add(commands: Commands) -> None:
    """Adds the command to the parser."""
    dev_cert = commands.add_parser(
        "dev-cert",
        help="make a certificate for development",
        description="Makes a local certificate authority and a certificate for development, valid for 397 days.",
        epilog="example: pyhv dev-cert localhost 127.0.0.1 192.168.0.7 --dir certs",
    )
    dev_cert.add_argument("names", nargs="*", default=list(NAMES), help=f"host names and addresses ({' '.join(NAMES)})")
    dev_cert.add_argument("--dir", type=Path, default=Path(), help="folder to write to (the current one)")
    dev_cert.add_argument("--force", action="store_true", help="replace files that exist")
    dev_cert.set_defaults(run=run)


def files_in(folder: Path) -> dict[str, Path]:
    """The files of a certificate, by what they are: "ca", "cert" and "key"."""
    return {name: folder / f"pyhv-dev-{name}.pem" for name in ("ca", "cert", "key")}


def make(folder: Path, names: list[str]) -> dict[str, Path]:
    """Writes a local authority, a certificate that it signed and the certificate's key; returns `files_in`.

    Replaces what is there. Raises OSError, and ValueError for a name that will not do.
    """
    files = files_in(folder)
    authority, certificate, key = _native.make_dev_certificates(names)
    folder.mkdir(parents=True, exist_ok=True)
    files["ca"].write_text(authority)
    files["cert"].write_text(certificate)
    # Readable by its owner alone from the first moment on.
    files["key"].unlink(missing_ok=True)
    with os.fdopen(os.open(files["key"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(key)
    return files


def run(options: argparse.Namespace) -> int:
    """Exit status 0, or 1 with one line on stderr."""
    try:
        if not options.force:
            for file in files_in(options.dir).values():
                if file.exists():
                    raise FileExistsError(f"{file} exists already; --force replaces it")
        files = make(options.dir, options.names)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"certificate for {', '.join(options.names)}: {files['cert']}, key: {files['key']}")
    print(f"server:  start(port, tls_port=..., certfile={str(files['cert'])!r}, keyfile={str(files['key'])!r})")
    print(f"client:  connect('wss://...', ca_file={str(files['ca'])!r})")
    print(f"browser: import {files['ca']} as an authority. Its key was thrown away: it signed this certificate alone.")
    return 0
