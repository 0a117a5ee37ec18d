"""Serves the documentation that `make docs` has built, with pyHV itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyhv import HvWebServer

BUILT = Path(__file__).resolve().parent.parent / "target/docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9090)
    options = parser.parse_args()
    server = HvWebServer()
    server.static("/", BUILT, cache_control="no-cache")
    print(f"http://127.0.0.1:{options.port}/ (Ctrl-C stops it)", flush=True)
    server.run(options.port)


if __name__ == "__main__":
    main()
