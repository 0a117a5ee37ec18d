"""Bars and curves made of text."""

from __future__ import annotations

from collections.abc import Sequence

from pyhv._cli.output import Output

__all__ = ["Latencies", "bar", "curve", "histogram", "seconds"]

_BLOCKS = " ▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"


class Latencies:
    """How long things took, in nanoseconds. Of bounded size: a value is kept to one part in 64 at least."""

    _BITS = 6

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.least = 0
        self.most = 0

    def add(self, value: int) -> None:
        """One more."""
        value = max(0, value)
        shift = max(0, value.bit_length() - self._BITS - 1)
        key = shift << 8 | value >> shift
        self._counts[key] = self._counts.get(key, 0) + 1
        self.least = value if not self.count else min(self.least, value)
        self.most = max(self.most, value)
        self.count += 1
        self.total += value

    def buckets(self) -> list[tuple[int, int]]:
        """Values and how many there were of them, the smallest first."""
        shifts = ((key >> 8, key & 0xFF, count) for key, count in sorted(self._counts.items()))
        return [((low << shift) + (1 << shift >> 1), count) for shift, low, count in shifts]

    def percentile(self, part: float) -> int:
        """The value that `part` (0 to 1) of all do not exceed; 0 without any."""
        wanted, seen = part * self.count, 0
        for value, count in self.buckets():
            seen += count
            if seen >= wanted:
                return min(max(value, self.least), self.most)
        return self.most

    @property
    def mean(self) -> float:
        """Their mean; 0 without any."""
        return self.total / self.count if self.count else 0.0


def seconds(nanoseconds: float) -> str:
    """A time for people: "12.3 µs"; with an ASCII "us", which every terminal has."""
    for factor, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def bar(part: float, columns: int, *, unicode: bool) -> str:
    """A bar as long as `part` (0 to 1) of the columns, filled up with spaces."""
    part = min(max(part, 0.0), 1.0)
    if not unicode:
        return ("#" * round(part * columns)).ljust(columns)
    eighths = round(part * columns * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_PARTS[rest] if rest else "")).ljust(columns)


def histogram(latencies: Latencies, out: Output, columns: int = 40) -> list[str]:
    """Lines, one for each step of latency, on a logarithmic scale, with a bar for how many took so long."""
    if not latencies.count:
        return []
    # Steps of 1, 2 and 5.
    steps = [int(factor * 10**power) for power in range(12) for factor in (1, 2, 5)]
    counts = [0] * len(steps)
    at = 0
    for value, count in latencies.buckets():
        while at + 1 < len(steps) and value > steps[at]:
            at += 1
        counts[at] += count
    first = next(number for number, count in enumerate(counts) if count)
    last = max(number for number, count in enumerate(counts) if count)
    most = max(counts)
    unicode = out.can_show(_PARTS)
    lines = []
    for number in range(first, last + 1):
        count = counts[number]
        drawn = bar(count / most, columns, unicode=unicode)
        if count and not drawn.strip():
            drawn = ("▏" if unicode else ".").ljust(columns)
        label = f"<= {seconds(steps[number])}".rjust(10)
        lines.append(f"{label} {out.paint(drawn, 'bar')} {count:>9,} {count / latencies.count:6.1%}")
    return lines


def curve(values: Sequence[float], out: Output, step: float, columns: int = 60, rows: int = 6) -> list[str]:
    """Lines that plot values over time, from 0 up.

    :param step: seconds from one to the next.
    """
    if not values:
        return []
    while len(values) > columns:
        # Means of pairs, as often as it takes.
        values = [sum(pair) / len(pair) for pair in (values[i : i + 2] for i in range(0, len(values), 2))]
        step *= 2
    top = max(values) or 1.0
    unicode = out.can_show(_BLOCKS)
    lines = []
    for row in range(rows - 1, -1, -1):
        drawn = ""
        for value in values:
            filled = value / top * rows - row
            if unicode:
                drawn += _BLOCKS[round(min(max(filled, 0.0), 1.0) * 8)]
            else:
                drawn += "#" if filled >= 0.5 else " "
        label = f"{top:,.0f}" if row == rows - 1 else "0" if row == 0 else ""
        lines.append(f"{label:>10} {out.paint(drawn.rstrip(), 'bar')}")
    end = f"{len(values) * step:.3g} s"
    lines.append(f"{'':10} 0 s {end.rjust(len(values) - 4)}")
    return lines
