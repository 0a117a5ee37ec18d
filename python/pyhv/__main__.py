"""The command line: `python -m pyhv`, or `pyhv`."""

from __future__ import annotations

import sys

from pyhv._cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
