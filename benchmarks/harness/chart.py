"""Charts as SVG: lines over one axis, and rows with several panels. The same data make the same bytes.

A chart paints its own ground, light or dark as the reader's system asks, so that it is readable wherever it is shown.
Nobody has to tell colours apart: every line ends in its name, and has markers of its own shape. The colours are those
of Okabe and Ito, which colour-blind people tell apart, made lighter for the dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from itertools import count, takewhile

Point = tuple[float, float]

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
#: Of each style of line or bar: its colour in the light, in the dark, and the shape of its markers.
STYLES = {
    "pyhv": ("#d55e00", "#ff8c42", "circle"),
    "blue": ("#0072b2", "#5bb0ea", "square"),
    "green": ("#00805d", "#3fcf9f", "triangle"),
    "purple": ("#a8488a", "#e08cc6", "diamond"),
    "plain": ("#1f2328", "#e6edf3", "cross"),
    "faint": ("#7d858e", "#8b949e", ""),
}
GROUND, INK, GRID = ("#ffffff", "#0d1117"), ("#1f2328", "#e6edf3"), ("#d8dee4", "#2f363d")
MARGIN = 16
#: Between two names at the ends of lines, and about what a letter of theirs takes.
NAME_HEIGHT, NAME_WIDTH = 16.0, 7.4


@dataclass(frozen=True)
class Axis:
    """What is along an axis: its name with the unit, how its numbers are written, and whether it is logarithmic."""

    name: str
    write: Callable[[float], str]
    log: bool = False
    #: Where its numbers stand; without, the chart chooses round ones.
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve, or what of it was measured."""

    name: str
    style: str
    points: list[Point]
    #: What is no peer but a bound is dashed and has no markers.
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """What one row has in one panel: parts one behind the other, or a range with a mark in it."""

    style: str
    #: The parts of a bar, the first one in full colour, and what is written behind them.
    parts: tuple[float, ...] = ()
    #: Instead: from, middle, to; drawn as a line with a dot.
    span: tuple[float, float, float] | None = None
    text: str = ""
    #: A grey mark to compare with.
    mark: float | None = None


@dataclass(frozen=True)
class Panel:
    """One measure, for all rows; one without an axis is a column of words."""

    name: str
    #: The greatest number at its axis: what is longer is cut, and its text tells.
    top: float = 0.0
    width: float = 170.0
    #: What of the width is left free for the text behind a bar.
    room: float = 50.0
    #: Where its numbers stand; without, the chart chooses round ones.
    ticks: tuple[float, ...] = ()
    #: Which of them has a dashed line.
    bound: float | None = None


@dataclass
class Group:
    """Rows under one heading: the name and style of each, and a bar for each panel."""

    name: str
    rows: list[tuple[str, str, list[Bar]]] = field(default_factory=list)


def line_chart(title: str, note: str, x: Axis, y: Axis, lines: list[Line], size: Point = (780, 440)) -> str:
    """Curves over one axis, each with its name at its end. `note` stands below the title."""
    width, height = size
    left, top, bottom = 66.0, 100.0, height - 56
    right = width - MARGIN - 16 - NAME_WIDTH * max(len(line.name) for line in lines)
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    across = _scale(x, min(xs), max(xs), left, right)
    upwards = _scale(y, min(ys), max(ys), bottom, top)
    parts = [_text(MARGIN, top - 18, y.name, "small")]
    for tick in y.ticks or _round_numbers(y, min(ys), max(ys)):
        at = upwards(tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {at:.1f}H{right:.1f}"/>')
        parts.append(_text(left - 8, at + 4, y.write(tick), "small", "end"))
    for tick in x.ticks or _round_numbers(x, min(xs), max(xs)):
        at = across(tick)
        parts.append(f'<path class="axis" d="M{at:.1f} {bottom:.1f}v5"/>')
        parts.append(_text(at, bottom + 20, x.write(tick), "small", "middle"))
    parts.append(f'<path class="axis" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>')
    parts.append(_text((left + right) / 2, bottom + 40, x.name, "small", "middle"))
    placed = [(line, [(across(one), upwards(other)) for one, other in line.points]) for line in lines]
    # The lines of peers first, so that pyHV's lies on top.
    for line, points in sorted(placed, key=lambda pair: pair[0].style == "pyhv"):
        parts.append(_curve(line, points))
    ends = [(points[-1][1], line, points[-1]) for line, points in placed]
    for at, line, end in _apart(ends, top, bottom):
        if abs(at - end[1]) > 3 or end[0] < right - 1:
            parts.append(
                f'<path class="leader s-{line.style}" d="M{end[0] + 7:.1f} {end[1]:.1f}L{right + 9:.1f} {at:.1f}"/>'
            )
        weight = "strong" if line.style == "pyhv" else "name"
        parts.append(_text(right + 12, at + 4, line.name, f"{weight} f-{line.style}"))
    return _document(title, note, width, height, parts)


def row_chart(title: str, note: str, panels: list[Panel], groups: list[Group]) -> str:
    """Rows of bars in several panels side by side."""
    row, heading, names, gap = 25.0, 34.0, 128.0, 24.0
    width = MARGIN + names + sum(panel.width for panel in panels) + gap * (len(panels) - 1) + MARGIN
    top = 92.0
    height = top + sum(heading + row * len(group.rows) for group in groups) + 40
    bottom = height - 38
    # Where the rows of each group are: the lines of the axes leave the headings out.
    spans, at = [], top
    for group in groups:
        spans.append((at + heading, at + heading + row * len(group.rows)))
        at = spans[-1][1]
    parts, left = [], MARGIN + names
    for number, panel in enumerate(panels):
        if panel.top:
            parts.append(_text(left, top - 8, panel.name, "small"))
            parts += _panel_axis(panel, left, spans, bottom)
        else:
            parts.append(_text(left + panel.width, top - 8, panel.name, "small", "end"))
        for (first, _), group in zip(spans, groups, strict=True):
            for place, (_, _, bars) in enumerate(group.rows):
                parts += _bar(bars[number], panel, left, first + row * place, row)
        left += panel.width + gap
    for (first, _), group in zip(spans, groups, strict=True):
        parts.append(_text(MARGIN, first - 12, group.name, "heading"))
        for place, (name, style, _) in enumerate(group.rows):
            weight = "strong" if style == "pyhv" else "name"
            parts.append(_text(MARGIN + names - 10, first + row * place + 16, name, f"{weight} f-{style}", "end"))
    return _document(title, note, width, height, parts)


def _panel_axis(panel: Panel, left: float, spans: list[Point], bottom: float) -> list[str]:
    along, parts = _panel_scale(panel, left), []
    for tick in panel.ticks or _round_numbers(Axis("", _number), 0, panel.top, about=3):
        kind = "bound" if tick == panel.bound else "grid"
        lines = "".join(f"M{along(tick):.1f} {begin:.1f}V{end:.1f}" for begin, end in spans)
        parts.append(f'<path class="{kind}" d="{lines}"/>')
        parts.append(_text(along(tick), bottom + 16, _number(tick), "small", "middle"))
    return parts


def _panel_scale(panel: Panel, left: float) -> Callable[[float], float]:
    """Where in a panel a value is; what is beyond its end is at its end."""
    along = _scale(Axis("", _number), 0, panel.top, left, left + panel.width - panel.room)
    return lambda value: along(min(value, panel.top))


def _bar(bar: Bar, panel: Panel, left: float, at: float, row: float) -> list[str]:
    middle = at + row / 2
    if not panel.top:
        return [_text(left + panel.width, middle + 4, bar.text, "name", "end")] if bar.text else []
    along, parts, end, total = _panel_scale(panel, left), [], left, 0.0
    for number, part in enumerate(bar.parts):
        total += part
        shade = f"f-{bar.style}" + (" light" if number else "")
        size = f'width="{along(total) - end:.1f}" height="{row - 10:.1f}"'
        parts.append(f'<rect class="{shade}" x="{end:.1f}" y="{at + 5:.1f}" {size}/>')
        end = along(total)
    if bar.span:
        low, dot, high = map(along, bar.span)
        parts.append(f'<path class="span s-{bar.style}" d="M{low:.1f} {middle:.1f}H{high:.1f}"/>')
        parts.append(f'<circle class="f-{bar.style}" cx="{dot:.1f}" cy="{middle:.1f}" r="5"/>')
        end = high
        total = bar.span[2]
    if bar.mark is not None:
        mark = along(bar.mark)
        parts.append(f'<path class="mark" d="M{mark:.1f} {at + 3:.1f}v{row - 6:.1f}"/>')
        end = max(end, mark)
    if bar.text:
        beyond = "→ " if total > panel.top else ""
        parts.append(_text(end + 8, middle + 4, beyond + bar.text, "value"))
    return parts


def _scale(axis: Axis, low: float, high: float, begin: float, end: float) -> Callable[[float], float]:
    """Where on the paper a value is; a linear axis begins at 0."""
    turn = math.log10 if axis.log else float
    first, last = turn(low) if axis.log else 0.0, turn(high)
    if axis.name and not axis.ticks:
        # A little room beyond the points.
        first, last = first - 0.03 * (last - first) * axis.log, last + 0.03 * (last - first)
    span = last - first or 1.0
    return lambda value: begin + (turn(value) - first) / span * (end - begin)


def _round_numbers(axis: Axis, low: float, high: float, about: int = 5) -> list[float]:
    """Ticks within an axis: multiples of 1, 2 or 5 times a power of ten."""
    if axis.log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if math.log10(high / low) < 2 else (1, 3)
        return [value for power in powers for factor in factors if low <= (value := factor * 10.0**power) <= high]
    rough = high / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return list(
        takewhile(lambda value: value <= high * (1.03 if axis.name else 1.001), (step * number for number in count()))
    )


def _apart(ends: Iterable[tuple[float, Line, Point]], top: float, bottom: float) -> list[tuple[float, Line, Point]]:
    """Names at the ends of lines, moved until none covers another; their order stays."""
    ordered = sorted(ends, key=lambda end: (end[0], end[1].name))
    places = [end[0] for end in ordered]
    for _ in range(200):
        for number in range(1, len(places)):
            overlap = NAME_HEIGHT - (places[number] - places[number - 1])
            if overlap > 0.01:
                places[number - 1] -= overlap / 2
                places[number] += overlap / 2
        places = [min(max(place, top), bottom) for place in places]
    return [(place, line, end) for place, (_, line, end) in zip(places, ordered, strict=True)]


def _curve(line: Line, points: list[Point]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = "curve strong-line" if line.style == "pyhv" else "curve dashed" if line.dashed else "curve"
    shape = f'<polyline class="{kind} s-{line.style}" points="{path}"/>'
    return shape + "".join(_marker(line, x, y) for x, y in points if not line.dashed)


def _marker(line: Line, x: float, y: float) -> str:
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>',
        "square": f'<path d="M{x - 4:.1f} {y - 4:.1f}h8v8h-8z"/>',
        "triangle": f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
        "diamond": f'<path d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5l-5.5 5.5l-5.5 -5.5z"/>',
        "cross": f'<path class="curve s-plain" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>',
    }
    return f'<g class="f-{line.style}">{shapes[STYLES[line.style][2]]}</g>'


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    place = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{place}>{escape(words, quote=False)}</text>'


def _number(value: float) -> str:
    return f"{value:,.10g}"


def _colours(dark: int) -> str:
    rules = [
        f".ground{{fill:{GROUND[dark]}}}.value{{stroke:{GROUND[dark]}}}.axis,.bound,.mark{{stroke:{INK[dark]}}}.grid{{stroke:{GRID[dark]}}}"
    ]
    rules.append(f"text{{fill:{INK[dark]}}}.small,.value{{fill:{('#57606a', '#9da7b1')[dark]}}}")
    rules += [f".s-{name}{{stroke:{style[dark]}}}.f-{name}{{fill:{style[dark]}}}" for name, style in STYLES.items()]
    return "".join(rules)


def _document(title: str, note: str, width: float, height: float, parts: list[str]) -> str:
    style = (
        f"text{{font:12.5px {FONT}}}.title{{font-size:16px;font-weight:600}}.small,.value{{font-size:11.5px}}"
        ".strong{font-weight:700;font-size:14px}.heading{font-weight:600}"
        ".grid,.axis{stroke-width:1}.axis,.grid,.curve,.leader,.span,.mark,.bound{fill:none}"
        ".curve{stroke-width:2;stroke-linejoin:round}.strong-line{stroke-width:4}.dashed{stroke-dasharray:6 4}"
        ".leader{stroke-width:1;opacity:.6}.span{stroke-width:4;stroke-linecap:round}.mark{stroke-width:2;opacity:.45}"
        ".value{paint-order:stroke;stroke-width:5px;stroke-linejoin:round}.bound{stroke-dasharray:3 3;opacity:.6}"
        ".light{opacity:.45}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img">',
            f"<title>{escape(title, quote=False)}</title>",
            f"<style>{style}{_colours(0)}@media (prefers-color-scheme:dark){{{_colours(1)}}}</style>",
            f'<rect class="ground" width="{width:g}" height="{height:g}" rx="6"/>',
            _text(MARGIN, 30, title, "title"),
            _text(MARGIN, 50, note, "small"),
            *parts,
            "</svg>",
            "",
        ]
    )
