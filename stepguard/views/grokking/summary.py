from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table

from stepguard.views.frame import CollapseFrame, collapsed, headroom
from stepguard.views.grokking.milestones import GENERALISED, first_epoch


class Outcome(NamedTuple):
    """What became of a run; accuracies and collapse in percent, epochs counted from 0."""

    train: float
    test: float
    half: int | None
    """Epoch at which it was right about half of the test pairs."""
    generalised: int | None
    """Epoch at which it was right about 98% of them."""
    peak_collapse: float
    """nan if none was measured."""
    lowest_headroom: float
    """In nats; nan if none was measured."""


def outcome(frames: Sequence[CollapseFrame]) -> Outcome:
    """Sum up one run, which must have made at least one epoch."""
    tests = [frame.test_accuracy for frame in frames]
    return Outcome(
        train=frames[-1].train_accuracy,
        test=tests[-1],
        half=first_epoch(tests, 50.0),
        generalised=first_epoch(tests, GENERALISED),
        peak_collapse=max(_measured(map(collapsed, frames)), default=math.nan),
        lowest_headroom=min(_measured(map(headroom, frames)), default=math.nan),
    )


def closing_table(rows: Mapping[str, Outcome], caption: str) -> Table:
    """The outcomes side by side."""
    table = Table(caption=caption or None, caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("run", no_wrap=True)
    for heading in ("train\n%", "test\n%", "epoch\nof 50%", "epoch\nof 98%"):
        table.add_column(heading, justify="right")
    for heading in ("collapsed\nat most", "headroom\nat least"):
        table.add_column(heading, justify="right")
    for run, row in rows.items():
        values = (f"{row.train:.1f}", f"{row.test:.1f}", _epoch(row.half), _epoch(row.generalised))
        table.add_row(run, *values, _known(row.peak_collapse, ".1f", "%"), _known(row.lowest_headroom, ".2f"))
    return table


def _measured(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _epoch(value: int | None) -> str:
    return "never" if value is None else f"{value}"


def _known(value: float, digits: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{digits}}{unit}"
