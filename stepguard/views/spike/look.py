from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from stepguard.views.frame import StepFrame, lr_applied, r_asked, r_taken
from stepguard.views.look import Column, Look, bar

SAFE, BEYOND, CUT = "green", "red", "yellow"


def spike_look(target: float) -> Look[StepFrame]:
    """Loss, accuracy, and the r of each step beside its limit ``target``."""
    columns: tuple[Column[StepFrame], ...] = (
        Column("loss", lambda frame: f"{frame.loss:.3g}"),
        Column("acc %", lambda frame: f"{frame.accuracy:.1f}"),
        Column("r asked", lambda frame: f"{r_asked(frame):.3g}"),
        Column("r, limit |", lambda frame: _gauge(r_asked(frame), r_taken(frame), target), wide=True),
        Column("lr asked", lambda frame: f"{frame.lr:.3g}"),
        Column("applied", lambda frame: f"{lr_applied(frame):.3g}"),
    )
    return Look("step", columns, _legend(), _line)


def _line(frame: StepFrame) -> str:
    return (
        f"loss {frame.loss:<8.3g}  {frame.accuracy:5.1f}%  "
        f"r {r_asked(frame):<8.3g}  lr {frame.lr:.3g} -> {lr_applied(frame):.3g}"
    )


def _gauge(asked: float, taken: float, target: float) -> Table:
    """The log axis of r: three decades up to the limit, six beyond it."""
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(width=1)
    grid.add_column(ratio=2)
    # A step made exactly as long as the limit may come out a rounding beyond it.
    beyond = CUT if taken <= target * (1 + 1e-6) else BEYOND
    grid.add_row(
        bar(math.log10(taken / target) / 3 + 1 if taken > 0 else taken, SAFE),
        "|",
        bar(math.log10(asked / target) / 6 if asked > 0 else asked, beyond),
    )
    return grid


def _legend() -> Text:
    parts = (("safe", SAFE), ("  beyond the limit, taken", BEYOND), ("  beyond the limit, cut off", CUT))
    return Text.assemble(*parts, justify="right")
