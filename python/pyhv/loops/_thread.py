"""For loops that cannot wait for a descriptor: a thread waits, and hands the call over. It runs no callback itself."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable

from pyhv.loops._attachment import Undo


def watch(fd: int, call: Callable[[], None], call_soon: Callable[[Callable[[], None]], object]) -> Undo:
    """Whenever `fd` is readable, has `call_soon` see to it that the loop's thread runs `call`, once.

    :param call_soon: called on the thread that waits. An exception of it ends the watch: the loop is no more.
    """
    # "x" from the loop: `call` has run, so wait again. Its end: stop.
    ours, loops = socket.socketpair()

    def run() -> None:
        if loops.fileno() < 0:
            return  # undone meanwhile
        try:
            call()
        finally:
            if loops.fileno() >= 0:
                loops.send(b"x")

    def wait() -> None:
        with ours, selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            selector.register(ours, selectors.EVENT_READ)
            while True:
                if any(key.fileobj is ours for key, _ in selector.select()):
                    return
                try:
                    call_soon(run)
                except Exception:
                    return
                if not ours.recv(1):
                    return

    thread = threading.Thread(target=wait, name="pyhv-loop-watch", daemon=True)
    thread.start()
    return loops.close
