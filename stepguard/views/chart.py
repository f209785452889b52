from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

from stepguard.views.trail import Trail

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ASCII = " ....::##"
_LABEL = 8
_BELOW, _BEYOND = Style(color="cyan"), Style(color="red", bold=True)
_STOOD, _LIMIT, _AXIS = Style(color="cyan", dim=True), Style(color="yellow"), Style(dim=True)
_DECADES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 6.0)
"""That a line may stand for."""
_LEAST, _MOST = -3.0, 9.0
"""Decades from the limit that the axis reaches at most; what is farther is drawn at its end."""


class Chart:
    """A quantity over steps as columns on a logarithmic axis, with its limit as a line through them.

    Columns rise above that line where the quantity is beyond the limit, and only there, be it ever so little: colour
    says the same again. Where nothing was measured the value before stands on, dim.

    Args:
        trail: The quantity.
        limit: Where the line is.
        height: Lines, the axis below not counted.
    """

    def __init__(self, trail: Trail, limit: float, height: int = 5):
        # Its own: the thread of a user's progress bar draws it when it likes.
        self._trail, self._limit, self._height = trail.copy(), limit, height

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(_LABEL + 12, options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        letters, dash = (_ASCII, "-") if options.ascii_only else (_EIGHTHS, "▔")
        values = self._trail.over(max(options.max_width - _LABEL, 1))
        decades = [self._decades(value) for value in _standing(values)]
        below, each = _axis(decades, self._height)
        ends = {self._height - 1: self._height - below, 0: -below, below - 1: 0}
        for row in reversed(range(self._height)):
            label = f"{self._limit * 10 ** (each * ends[row]):>{_LABEL - 2}.2g}" if row in ends else ""
            yield Segment(label.ljust(_LABEL), _LIMIT if row == below - 1 else _AXIS)
            for value, decade in zip(values, decades, strict=True):
                # The lowest line has something of every column, so that a step that was seen is seen here.
                level = min(max(_eighths(decade / each) + 8 * (below - row), row == 0), 8)
                if level == 0:
                    yield Segment(dash, _LIMIT) if row == below - 1 else Segment(" ")
                else:
                    style = _BEYOND if decade > 0 else _BELOW
                    yield Segment(letters[level], style if value is not None else _STOOD)
            yield Segment.line()
        first, last = f"{self._trail.first:,}", f"{self._trail.last:,}"
        gap = len(values) - len(first) - len(last)
        yield Segment(" " * _LABEL + (first + " " * gap + last if gap > 0 else last.rjust(len(values))), _AXIS)
        yield Segment.line()

    def _decades(self, value: float) -> float:
        """How far a value is beyond the limit, in powers of ten."""
        return math.log10(value / self._limit) if 0 < value < math.inf else math.copysign(math.inf, value - 1)


def _standing(values: Sequence[float | None]) -> Iterator[float]:
    """With each gap filled by what was before it; the first is none."""
    before = 0.0
    for value in values:
        before = before if value is None else value
        yield before


def _axis(decades: Sequence[float], height: int) -> tuple[int, float]:
    """How many lines lie below the limit, and how many decades each stands for: as few as hold all."""
    finite = [min(max(decade, _LEAST), _MOST) for decade in decades if math.isfinite(decade)]
    for each in _DECADES:
        below = max(math.ceil(-min(finite, default=0.0) / each), 1)
        above = max(math.ceil(max(finite, default=0.0) / each), 1)
        if below + above <= height:
            break
    return height - above, each


def _eighths(lines: float) -> int:
    """Of a line, away from the limit: what is beyond it, by however little, is so in the picture."""
    lines = min(max(lines, -99.0), 99.0)
    return math.ceil(8 * lines) if lines > 0 else math.floor(8 * lines)
