from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from rich import box
from rich.table import Table

from stepguard.views.frame import StepFrame, r_taken


class Outcome(NamedTuple):
    """What became of a run; accuracies in percent, None where the run did not get that far."""

    before: float | None
    """Accuracy at the last step before the spike."""
    lowest: float | None
    """Lowest accuracy from the spike's first step on."""
    final: float
    largest_r: float
    """Largest r of a step really made, inf if one was not finite, nan if none was measured."""
    unmeasured: int
    """Steps made without being measured, whose r may have been larger."""


def outcome(frames: Sequence[StepFrame], spike_start: int) -> Outcome:
    """Sum up one run, which must have made at least one step."""
    before = [f.accuracy for f in frames if f.step < spike_start]
    after = [f.accuracy for f in frames if f.step >= spike_start]
    taken = [r_taken(f) for f in frames if f.reading]
    return Outcome(
        before=before[-1] if before else None,
        lowest=min(after, default=None),
        final=frames[-1].accuracy,
        largest_r=max((math.inf if math.isnan(r) else r for r in taken), default=math.nan),
        unmeasured=sum(event.kind == "unmeasured" for f in frames for event in f.events),
    )


def median_outcome(outcomes: Sequence[Outcome]) -> Outcome:
    """The median over seeds that got equally far; of r the largest of all, for one step is enough to break a model.

    Example:
        >>> median_outcome([Outcome(90.0, 10.0, 20.0, 3.0, 0), Outcome(80.0, 30.0, 60.0, 5.0, 1)])
        Outcome(before=85.0, lowest=20.0, final=40.0, largest_r=5.0, unmeasured=1)
    """
    before, lowest, final, largest_r, unmeasured = zip(*outcomes, strict=True)
    return Outcome(
        before=None if None in before else median(before),
        lowest=None if None in lowest else median(lowest),
        final=median(final),
        largest_r=max(largest_r),
        unmeasured=sum(unmeasured),
    )


def closing_table(rows: Mapping[str, Outcome], caption: str) -> Table:
    """The outcomes side by side."""
    table = Table(caption=caption or None, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for heading in ("accuracy before\nthe spike, %", "lowest\nafter it, %", "final, %", "largest r\nreally taken"):
        table.add_column(heading, justify="right")
    for run, row in rows.items():
        table.add_row(run, _percent(row.before), _percent(row.lowest), _percent(row.final), _largest(row))
    return table


def _largest(row: Outcome) -> str:
    if math.isnan(row.largest_r):
        return "-"
    return f"{'>= ' if row.unmeasured else ''}{row.largest_r:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
