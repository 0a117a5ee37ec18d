"""Sockets that a service manager has opened for the program."""

from __future__ import annotations

import os
import socket

__all__ = ["listen_fds"]

#: The first of them, as sd_listen_fds(3) has it.
_FIRST = 3


def listen_fds(name: str | None = None) -> list[socket.socket]:
    """The sockets that systemd has passed to this process, for `HvWebServer.start(sockets=...)`, if there are any.

    It is the protocol of sd_listen_fds(3), which other supervisors speak as well: LISTEN_FDS tells how many there are,
    from descriptor 3 on, LISTEN_PID for which process, LISTEN_FDNAMES how they are called.

    :param name: only those with this name, which is `FileDescriptorName=` in the socket's unit.

    The sockets are new objects for duplicates of the descriptors, which stay as they are: calling it again gives the
    same again. From here on programs that this one starts do not inherit the descriptors. Raises ValueError when
    LISTEN_FDS is no number, OSError when a descriptor is not open or no socket. Any thread; never blocks.
    """
    count = os.environ.get("LISTEN_FDS", "")
    if os.name != "posix" or not count or os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS={count!r} in the environment is not a number")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[socket.socket] = []
    try:
        for index in range(int(count)):
            descriptor = _FIRST + index
            os.set_inheritable(descriptor, False)
            if name is None or (index < len(names) and names[index] == name):
                found.append(socket.socket(fileno=os.dup(descriptor)))
    except OSError:
        for each in found:
            each.close()
        raise
    return found
