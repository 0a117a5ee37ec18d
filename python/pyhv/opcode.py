"""The opcodes of WebSocket frames."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["WsOpcode"]


class WsOpcode(IntEnum):
    """Opcode of a WebSocket frame (RFC 6455 section 11.8)."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA
