"""What a result has to say about where it was measured."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from harness.cases import Peer


def describe() -> dict[str, str | int]:
    """Processor, cores, kernel and Python; nothing that names the machine or its user."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions(peers: Iterable[Peer]) -> dict[str, str]:
    """The version of every distribution that the peers are made of."""
    names = {name for peer in peers for name in peer.distributions}
    return {name: metadata.version(name) for name in sorted(names)}


def allowed_files() -> int:
    """Raises the limit of open files as far as it may be raised, for this process and its helpers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    for limit in (most, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, PermissionError):
            continue  # only root may go past the hard limit
        return limit
    return hard


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
