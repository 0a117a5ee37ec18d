"""Peers and lines that are slow on purpose."""

from __future__ import annotations

import select
import socket
import threading
import time
from types import TracebackType

from pyhv import WsOpcode
from support import HOST, RawClient


class SlowReader(RawClient):
    """A client that takes so many bytes at a time, and answers pings when it has read them."""

    def take(self, budget: int) -> list[bytes]:
        """Reads up to `budget` bytes of what has come; returns the messages that are whole."""
        if self.readable_now():
            self.buffer += self.socket.recv(budget)
        messages = []
        while self._has_frame():
            frame = self.read_frame()
            if frame.opcode == WsOpcode.PING:
                self.send_frame(WsOpcode.PONG, frame.payload)
            elif frame.opcode in (WsOpcode.TEXT, WsOpcode.BINARY):
                messages.append(frame.payload)
        return messages

    def readable_now(self) -> bool:
        return bool(select.select([self.socket], [], [], 0)[0])

    def _has_frame(self) -> bool:
        if len(self.buffer) < 2:
            return False
        length, head = self.buffer[1] & 0x7F, 2
        if length == 126:
            length, head = int.from_bytes(self.buffer[2:4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(self.buffer[2:10], "big"), 10
        return len(self.buffer) >= head + length


class Line:
    """A relay to a server on a thread of its own, whose directions can be held up or made narrow.

    `rate`: bytes a second that it takes from the server, None for all there are. What it has not taken waits in the
    system's buffers, which are small on its side.
    """

    def __init__(self, to: int, rate: float | None = None) -> None:
        self.rate = rate
        self.up_held = False
        self._to = to
        self._closed = False
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while not select.select([self._listener], [], [], 0.01)[0]:
            if self._closed:
                return
        near, _ = self._listener.accept()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        far.connect((HOST, self._to))
        with near, far:
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self._pass_on(near, far)
            except OSError:
                return  # one end has left: the other hears of it by the end of the with

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        allowed, last = 0.0, time.monotonic()
        while not self._closed:
            now, rate = time.monotonic(), self.rate
            if rate is not None:
                # No more than a moment's worth at once, however long it was idle.
                allowed = min(allowed + rate * (now - last), max(rate / 100, 1.0))
            last = now
            wanted = [near] if not self.up_held else []
            if rate is None or allowed >= 1:
                wanted.append(far)
            for one in select.select(wanted, [], [], 0.002)[0]:
                data = one.recv(1 << 16 if rate is None or one is near else int(allowed))
                if not data:
                    return
                allowed -= len(data) if one is far else 0
                (near if one is far else far).sendall(data)
