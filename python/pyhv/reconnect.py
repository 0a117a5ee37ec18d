"""How a WebSocket client connects again."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Reconnect"]


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """How `HvWebSocketClient.connect(url, reconnect=…)` connects again. Times are in seconds.

    :param first: longest delay before the first attempt.
    :param factor: how many times longer it is before each further attempt.
    :param max_delay: longest delay of all.
    :param jitter: the part of each delay that is random, from 0 to 1: with 1 a delay is anything from 0 to the longest,
        with 0 always the longest. It keeps the clients of a server that went down from coming back all at once.
    :param max_attempts: attempts in a row, after which it gives up; None: it never does.
    :param min_uptime: how long a connection has to be open for attempts and delays to begin anew after it. After a
        shorter one they go on, so that a server that accepts and closes at once is left in peace.
    :param queue_bytes: how much `send` keeps while there is no connection, to be sent first of all on the next; a
        message counts with its frame's head, as 14 bytes more, and one with a key, which takes the place of its
        predecessor here too, with the key and 64 bytes. 0: nothing, and `send` returns False. At most
        `max_buffered`.

    Raises ValueError or TypeError for bad values.
    """

    first: float = 0.5
    factor: float = 2.0
    max_delay: float = 30.0
    jitter: float = 1.0
    max_attempts: int | None = None
    min_uptime: float = 5.0
    queue_bytes: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("first", 0.0, math.inf),
            ("factor", 1.0, math.inf),
            ("max_delay", 0.0, math.inf),
            ("jitter", 0.0, 1.0),
            ("min_uptime", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name}={value!r} is not a number")
            if not least <= value <= most or math.isinf(value):
                limits = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
                raise ValueError(f"{name}={value!r} is not a number {limits}")
        if self.first == 0:
            raise ValueError("first=0 would connect again without a pause")
        if self.max_delay < self.first:
            raise ValueError(f"max_delay={self.max_delay!r} is less than first={self.first!r}")
        for name, least in (("max_attempts", 1), ("queue_bytes", 0)):
            value = getattr(self, name)
            if value is None and name == "max_attempts":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={value!r} is not an int")
            if not least <= value < 1 << 32:
                raise ValueError(f"{name}={value} is not a number from {least} to {(1 << 32) - 1}")
