"""What is sent: frames, their sizes and sequence, and the checks of what a program asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from pyhv import _native

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

# Never started. Their methods check arguments before they look whether anything runs: so a World refuses what the
# native side refuses, in its words, because it is the native side that refuses.
_SERVER = _native.Server()
_CLIENT = _native.WebSocketClient()


def check_message(msg: Any) -> bytes:
    """The bytes of a message. Raises TypeError for what is neither str nor bytes-like."""
    _SERVER.broadcast(msg)
    return msg.encode() if isinstance(msg, str) else memoryview(msg).tobytes()


def check_opcode(opcode: Any, fin: Any, key: Any) -> int | None:
    """The opcode argument of `send`, beside the others. Raises ValueError or TypeError."""
    _CLIENT.send("", opcode, fin, key=key)
    return None if opcode is None else int(opcode)


def check_key(key: Any) -> None:
    """The key of a broadcast. Raises TypeError."""
    _SERVER.broadcast("", key=key)


def keyed_size(key: str | bytes, payload: bytes) -> int:
    """What a message with a key counts while it waits."""
    return len(payload) + len(key.encode() if isinstance(key, str) else key) + 64


def check_close(code: Any, reason: Any) -> int:
    """The code to close with. Raises ValueError or TypeError for what must not be sent."""
    _CLIENT.close(code, reason)
    return int(code)


def check_budget(max_ms: Any, max_events: Any) -> None:
    """The budget of a tick. Raises ValueError or TypeError."""
    _CLIENT.tick(0.0, max_ms=max_ms, max_events=max_events)


def check_timeout(timeout: Any) -> float:
    """A timeout in seconds. Raises ValueError or TypeError."""
    _SERVER.stop(timeout)
    return float(timeout)


def check_stop(timeout: Any, code: Any, reason: Any, spread: Any) -> tuple[float, int, str, float]:
    """The arguments of `stop`. Raises ValueError or TypeError."""
    _SERVER.stop(timeout, code=code, reason=reason, spread=spread)
    return float(timeout), int(code), reason, float(spread)


def check_server(host: str, port: int | list[int], options: dict[str, Any]) -> None:
    """The settings of a server. Raises ValueError or TypeError."""
    if isinstance(port, list):
        raise ValueError("sockets= is for real servers: in a World give a port")
    try:
        # The port for TLS is looked at last, and this one keeps the server from starting.
        _SERVER._start(host, port, (-1, "", ""), False, options)
    except ValueError as error:
        if not str(error).startswith("tls_port=-1 "):
            raise


def check_client(
    url: str,
    host: str,
    port: int,
    authority: str,
    path: str,
    headers: list[tuple[str, str]],
    protocols: list[str],
    options: dict[str, Any],
) -> None:
    """The arguments and settings of a client. Raises ValueError or TypeError."""
    unknown = "pyhv.testing"
    arguments = [url, host, port, authority, path, headers, protocols, {unknown: True}, options]
    if hasattr(_CLIENT, "is_reconnecting"):
        arguments.append(None)
    try:
        # TLS is looked at last, and a setting that there is not keeps the client from connecting.
        cast("Any", _CLIENT)._connect(*arguments)
    except TypeError as error:
        if not str(error).endswith(unknown):
            raise


@dataclass
class Frame:
    """A frame on its way."""

    opcode: int
    fin: bool
    payload: bytes
    size: int  # bytes on the wire
    #: A whole message, which `slow_policy` may drop as long as nothing of it has left.
    droppable: bool = False
    written: int = 0
    #: A message that newer ones with the same key replace: it has no bytes on the wire yet, and counts `keyed_size`.
    key: str | bytes | None = None


def frame_size(payload: int, masked: bool) -> int:
    """Bytes on the wire (RFC 6455 section 5.2)."""
    return payload + 2 + (0 if payload < 126 else 2 if payload < 1 << 16 else 8) + (4 if masked else 0)


class Sequence:
    """Which opcode each data frame of a channel gets (RFC 6455 section 5.4); the table is in outgoing.rs."""

    def __init__(self) -> None:
        #: The kind of the message sent in fragments that is not finished.
        self.open: int | None = None

    def next(self, opcode: int | None, kind: int, fin: bool) -> int:
        if opcode == CLOSE:
            raise ValueError("a close frame can't be sent as a message: call close(code, reason)")
        if opcode in (PING, PONG):
            if not fin:
                raise ValueError("a ping or pong can't be fragmented: send it with fin=True")
            return opcode
        if self.open is not None:
            if opcode in (TEXT, BINARY):
                raise ValueError(
                    "a fragmented message is open on this channel: finish it with fin=True before sending another one"
                )
            self.open = None if fin else self.open
            return CONTINUATION
        if opcode == CONTINUATION:
            raise ValueError(
                "no fragmented message is open on this channel: begin one with fin=False before continuing it"
            )
        begun = kind if opcode is None else opcode
        self.open = None if fin else begun
        return begun

    def check(self, opcode: int | None, kind: int, payload: bytes) -> None:
        """A control frame's payload fits (section 5.5); a text frame's is UTF-8 (section 5.6)."""
        if opcode in (CLOSE, PING, PONG) and len(payload) > 125:
            raise ValueError(f"a ping or pong carries at most 125 bytes, not {len(payload)}")
        text = self.open == TEXT if opcode in (None, CONTINUATION) else opcode == TEXT
        if text and kind == BINARY:
            try:
                payload.decode()
            except UnicodeDecodeError:
                raise ValueError("a text message has to be UTF-8, and these bytes are not") from None
