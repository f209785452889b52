from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from stepguard.records import Run
from stepguard.views.tensorboard.series import Numbers, breaches

CHARTS = {
    "r": ("readings", ("r",)),
    "lengths": ("readings", ("tau", "rho")),
    "rates": ("readings", ("lr", "lr_applied", "lr_safe")),
    "headroom": ("collapses", ("headroom_nats", "headroom_min", "headroom_median")),
    "shares": ("collapses", ("collapse", "zero_terms")),
    "alignment": ("collapses", ("nlm_alignment",)),
    "cost": ("readings", ("cost_share",)),
    "monitor-cost": ("collapses", ("cost_share",)),
}
"""What is drawn together: which records, and which of their fields."""


_SERIAL = itertools.count()


class Tables:
    """The records of a run as arrays, of which only what is new is made."""

    def __init__(self, run: Run):
        self.run = run
        self._serial = next(_SERIAL)  # a run of scalars is made anew, and may be as long as before
        self._starts: list[dict[str, Any]] = []
        self._columns: dict[tuple[str, str], Numbers] = {}

    @property
    def version(self) -> str:
        """Another one whenever something came."""
        run = self.run
        began = run.starts[-1].get("time") if run.starts else None
        lengths = (len(run.starts), len(run.readings), len(run.collapses), len(run.events))
        return "-".join(map(str, (self._serial, began, *lengths, run.ended)))

    def table(self, records: str, names: tuple[str, ...]) -> dict[str, Numbers]:
        """Columns of ``readings`` or ``collapses``, with their steps."""
        if self._starts != self.run.starts:  # a run that goes on may have gone back: nothing kept need hold
            self._starts, self._columns = list(self.run.starts), {}
        return {name: self._column(records, name) for name in ("step", *names)}

    def breaches(self) -> int:
        """How many readings were beyond their target."""
        table = self.table("readings", ("r", "target"))
        return int(breaches(table["r"], table["target"]).sum())

    def _column(self, records: str, name: str) -> Numbers:
        if name == "lr_safe":
            return _lr_safe(*(self._column(records, field) for field in ("r", "lr", "target")))
        kept = self._columns.get((records, name), np.empty(0))
        fresh = getattr(self.run, records).columns[name].floats(len(kept))
        if fresh:
            kept = np.concatenate([kept, np.frombuffer(fresh)])
            self._columns[records, name] = kept
        return kept


def _lr_safe(r: Numbers, lr: Numbers, target: Numbers) -> Numbers:
    """As :attr:`stepguard.Reading.lr_safe` tells it; nan where that is unknown."""
    safe = np.full(len(r), np.nan)
    np.divide(lr * target, r, out=safe, where=(r > 0) & np.isfinite(r) & (lr > 0))
    return safe
