"""The command line: `python -m pyhv`, or `pyhv`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pyhv import _native

__all__ = ["main"]


def _dev_cert(options: argparse.Namespace) -> int:
    """Writes a local authority, a certificate and its key; exit status 0, or 1 with one line on stderr."""
    folder: Path = options.dir
    files = {name: folder / f"pyhv-dev-{name}.pem" for name in ("ca", "cert", "key")}
    try:
        if not options.force:
            for file in files.values():
                if file.exists():
                    raise FileExistsError(f"{file} exists already; --force replaces it")
        authority, certificate, key = _native.make_dev_certificates(options.names)
        folder.mkdir(parents=True, exist_ok=True)
        files["ca"].write_text(authority)
        files["cert"].write_text(certificate)
        # Readable by its owner alone from the first moment on.
        files["key"].unlink(missing_ok=True)
        with os.fdopen(os.open(files["key"], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(key)
    except (OSError, ValueError) as error:
        print(f"pyhv dev-cert: {error}", file=sys.stderr)
        return 1
    print(f"certificate for {', '.join(options.names)}: {files['cert']}, key: {files['key']}")
    print(f"server:  start(port, tls_port=..., certfile={str(files['cert'])!r}, keyfile={str(files['key'])!r})")
    print(f"client:  connect('wss://...', ca_file={str(files['ca'])!r})")
    print(f"browser: import {files['ca']} as an authority. Its key was thrown away: it signed this certificate alone.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pyhv", description="Tools beside the pyHV library.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    dev_cert = commands.add_parser(
        "dev-cert",
        help="make a certificate for development",
        description="Makes a local certificate authority and a certificate for development, valid for 397 days.",
        epilog="example: pyhv dev-cert localhost 127.0.0.1 192.168.0.7 --dir certs",
    )
    default = ["localhost", "127.0.0.1", "::1"]
    dev_cert.add_argument("names", nargs="*", default=default, help=f"host names and addresses ({' '.join(default)})")
    dev_cert.add_argument("--dir", type=Path, default=Path(), help="folder to write to (the current one)")
    dev_cert.add_argument("--force", action="store_true", help="replace files that exist")
    dev_cert.set_defaults(run=_dev_cert)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
