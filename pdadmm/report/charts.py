"""Line charts as inline SVG: colours are the page's, so they follow its light and dark dress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Curve", "chart"]

WIDTH, HEIGHT = 440, 290
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 18, 34
LEAST = 1e-290  # numbers below it have no logarithm worth an axis
MOST_POINTS = 800  # of one curve: a screen shows no more


@dataclass(frozen=True)
class Curve:
    """A line: its ``name``, its points (x, y) in order of x, and the number of its colour and dash."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


def chart(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    lowest: float | None = None,
) -> str:
    """Return a figure of HTML with one chart; ``marks`` are vertical lines with a word, at places of x;
    what lies below ``lowest`` runs out of the picture.

    Points that a logarithmic axis cannot show are left out; a chart without points says so.
    """
    curves = [Curve(one.name, _thin([p for p in one.points if p[1] > LEAST or not log]), one.colour) for one in curves]
    curves = [one for one in curves if one.points]
    body = _svg(title, curves, x_label, log, marks, lowest) if curves else '<p class="missing">Not recorded.</p>'
    legend = "".join(f'<span class="key k{one.colour}">{escape(one.name)}</span>' for one in curves)
    return f"<figure><figcaption>{escape(title)}</figcaption><div class=legend>{legend}</div>{body}</figure>\n"


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MOST_POINTS of them, the last among these."""
    step = -(-len(points) // MOST_POINTS)
    return [*points[:-1:step], *points[-1:]] if step > 1 else list(points)


def _svg(
    title: str,
    curves: Sequence[Curve],
    x_label: str,
    log: bool,
    marks: Sequence[tuple[float, str]],
    lowest: float | None,
) -> str:
    xs = [x for one in curves for x, _ in one.points]
    ys = [y for one in curves for _, y in one.points]
    left, right = min(xs), max(xs)
    low, high = _range([y for y in ys if lowest is None or y >= lowest] or ys, log)
    lines = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']

    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - left) / (right - left) if right > left else 0.5)

    def y_of(y: float) -> float:
        share = (math.log(y / low) / math.log(high / low)) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    for tick in _log_ticks(low, high) if log else _ticks(low, high):
        y = y_of(tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(left, right):
        lines.append(f'<text class="tick" x="{x_of(tick):.1f}" y="{HEIGHT - 16}" text-anchor="middle">{tick:g}</text>')
    for place, word in marks:
        x = x_of(place)
        lines.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        lines.append(f'<text class="tick" x="{x + 3:.1f}" y="{TOP - 5}">{escape(word)}</text>')
    # an inner svg cuts off what lies below the axis
    box = f"{LEFT} {TOP} {WIDTH - LEFT - RIGHT} {HEIGHT - TOP - BOTTOM}"
    lines.append('<svg x="{}" y="{}" width="{}" height="{}" viewBox="{}">'.format(*box.split(), box))
    for one in curves:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in one.points)
        drawn = f'<polyline points="{path}"/>'
        if len(one.points) == 1:
            drawn = '<circle cx="{}" cy="{}" r="3"/>'.format(*path.split(","))
        lines.append(f'<g class="curve c{one.colour}">{drawn}</g>')
    lines.append("</svg>")
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    lines.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - 1}" text-anchor="middle">{escape(x_label)}</text></svg>'
    )
    return "\n".join(lines)


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Return where the vertical axis begins and ends, never at one place."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.1, high * 1.1) if high < 2 * low else (low, high)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers from ``low`` to ``high``.

    >>> _ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low <= 1e-5 * max(abs(low), abs(high), LEAST):
        return [low]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, with 2 and 5 between them where there are few.

    >>> _log_ticks(0.5, 200.0)
    [1.0, 10.0, 100.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = [10.0**k for k in range(first, last + 1, max(1, (last - first) // 6))]
    if last - first < 3:
        powers = [k * 10.0**power for power in range(first, last + 1) for k in (1, 2, 5)]
    shown = [tick for tick in powers if low * 0.999 <= tick <= high * 1.001]
    return shown if len(shown) > 1 else _ticks(low, high)
