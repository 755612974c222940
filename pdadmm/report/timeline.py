"""What the ranks did when, as inline SVG: shares of the time over the whole run, and one iteration in detail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from pdadmm.console import human_seconds
from pdadmm.report.folder import Span

__all__ = ["timeline"]

WIDTH, ROW, LABEL = 1100, 32, 58
BINS = 160
COLOURS = 9  # names with a colour of their own; what is left shares the last
MOST_RANKS = 32
MOST_SPANS = 4000  # of the iteration in detail


def timeline(ranks: Sequence[Sequence[Span]]) -> str:
    """Return HTML with a row for each rank, of the first MOST_RANKS."""
    spent = Counter[str]()
    for spans in ranks:
        for span in spans:
            spent[span.name] += span.length  # type: ignore[assignment]
    end = max((spans[-1].start + spans[-1].length for spans in ranks if spans), default=0.0)
    if not end:
        return '<p class="missing">The trace is empty.</p>'
    names = [name for name, _ in spent.most_common()]
    colours = {name: min(number, COLOURS) for number, name in enumerate(names)}
    total = sum(spent.values())
    named = [name for name in names if colours[name] < COLOURS]
    keys = [f'<span class="box b{colours[n]}">{escape(n)} {100 * spent[n] / total:.0f} %</span>' for n in named]
    if len(names) > len(named):
        rest = sum(spent[name] for name in names if colours[name] == COLOURS)
        keys.append(f'<span class="box b{COLOURS}">everything else {100 * rest / total:.0f} %</span>')
    shown = ranks[:MOST_RANKS]
    text = f"<div class=legend>{''.join(keys)}</div>\n"
    if len(ranks) > len(shown):
        text += f"<p>The first {len(shown)} of {len(ranks)} ranks are shown; the shares above are of all.</p>\n"
    text += _figure(
        f"The whole run: shares of {human_seconds(end / BINS)} each", _whole(shown, colours, end), shown, end
    )
    return text + _close_by(shown, colours)


def _figure(title: str, rows: Sequence[str], ranks: Sequence[Sequence[Span]], seconds: float) -> str:
    """Return a figure: a row of drawn marks for each rank, an axis of time below."""
    height = ROW * len(ranks) + 18
    lines = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for rank, marks in enumerate(rows):
        lines.append(f'<text class="tick" x="0" y="{rank * ROW + 19}">rank {rank}</text>')
        lines.append(f'<g transform="translate({LABEL},{rank * ROW + 2})">{marks}</g>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        word = human_seconds(share * seconds) if share else "0"
        place = LABEL + share * (WIDTH - LABEL)
        lines.append(f'<text class="tick" x="{place:.0f}" y="{height - 3}" text-anchor="{anchor}">{word}</text>')
    drawn = "\n".join(lines) + "</svg>"
    return f"<figure><figcaption>{escape(title)}</figcaption><div class=scroll>{drawn}</div></figure>\n"


def shares(spans: Sequence[Span], end: float, bins: int) -> list[Mapping[str, float]]:
    """Return, for each of ``bins`` equal parts of the time up to ``end``, the share of each name in it.

    >>> shares([Span("z", None, 1, 0.0, 0.5), Span("q", None, 1, 0.5, 1.5)], 2.0, 2)
    [{'z': 0.5, 'q': 0.5}, {'q': 1.0}]
    """
    width = end / bins
    found: list[dict[str, float]] = [{} for _ in range(bins)]
    for span in spans:
        stop = span.start + span.length
        number = min(int(span.start / width), bins - 1)
        while number < bins and number * width < stop:
            inside = min(stop, (number + 1) * width) - max(span.start, number * width)
            if inside > 0:
                found[number][span.name] = found[number].get(span.name, 0.0) + inside / width
            number += 1
    return list(found)


def _whole(ranks: Sequence[Sequence[Span]], colours: Mapping[str, int], end: float) -> list[str]:
    step, height = (WIDTH - LABEL) / BINS, ROW - 4
    rows = []
    for spans in ranks:
        marks = []
        for number, inside in enumerate(shares(spans, end, BINS)):
            top = 0.0
            for name in sorted(inside, key=lambda one: (colours[one], one)):
                size = height * min(inside[name], 1.0)
                if size >= 0.05:
                    place = f'x="{number * step:.2f}" y="{top:.2f}" width="{step + 0.1:.2f}" height="{size:.2f}"'
                    marks.append(f'<rect class="b{colours[name]}" {place}/>')
                top += size
        rows.append("".join(marks))
    return rows


def _close_by(ranks: Sequence[Sequence[Span]], colours: Mapping[str, int]) -> str:
    """Return a figure of one iteration, span by span; "" where there is none, or too much to draw."""
    number = _typical(ranks)
    if number is None:
        return ""
    chosen = [[span for span in spans if span.iteration == number] for spans in ranks]
    begin, end = _bounds(chosen)
    if end <= begin or sum(map(len, chosen)) > MOST_SPANS:
        return ""
    scale, rows = (WIDTH - LABEL) / (end - begin), []
    for spans in chosen:
        marks = []
        for span in spans:
            layer = "" if span.layer is None else f", layer {span.layer}"
            told = escape(f"{span.name}{layer}: {human_seconds(span.length)}")
            place = f'x="{(span.start - begin) * scale:.2f}" width="{max(span.length * scale, 0.2):.2f}"'
            marks.append(f'<rect class="b{colours[span.name]}" {place} height="{ROW - 4}"><title>{told}</title></rect>')
        rows.append("".join(marks))
    return _figure(f"Iteration {number} in detail", rows, ranks, end - begin)


def _bounds(ranks: Sequence[Sequence[Span]]) -> tuple[float, float]:
    begin = min(spans[0].start for spans in ranks if spans)
    return begin, max(spans[-1].start + spans[-1].length for spans in ranks if spans)


def _typical(ranks: Sequence[Sequence[Span]]) -> int | None:
    """Return the iteration of median length among the last half; None where the trace has none."""
    bounds: dict[int, tuple[float, float]] = {}
    for spans in ranks:
        for span in spans:
            begin, end = bounds.get(span.iteration, (span.start, 0.0))
            bounds[span.iteration] = min(begin, span.start), max(end, span.start + span.length)
    numbers = sorted(number for number in bounds if number > 0)
    late = numbers[len(numbers) // 2 :]
    lengths = {number: bounds[number][1] - bounds[number][0] for number in late}
    return sorted(late, key=lambda number: lengths[number])[(len(late) - 1) // 2] if late else None
