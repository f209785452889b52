from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.about import About
from stepguard.diagnosis.columns import column, last_known
from stepguard.diagnosis.track import Numbers
from stepguard.records import Run


class Cost(NamedTuple):
    """What watching took, as shares of the time; nan where that is unknown."""

    steps: int
    measured: int
    guard: float
    """In the middle of all readings."""
    guard_last: float
    monitor: float
    monitor_last: float


def cost(run: Run, run_about: About) -> Cost | None:
    """What guard and monitor took of the time; None where no reading tells.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis.about import about
        >>> from stepguard.records import Reading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> run.readings.append(Reading(0, 0.2, 1.0, 5.0, 1.0, 1.0, 0.1, 0.1, target=1.0, cost_share=0.02))
        >>> cost(run, about(run)).guard
        0.02
    """
    guard, monitor = column(run.readings, "cost_share"), column(run.collapses, "cost_share")
    found = Cost(
        steps=run_about.steps,
        measured=run_about.measured,
        guard=_middle(guard),
        guard_last=last_known(guard),
        monitor=_middle(monitor),
        monitor_last=last_known(monitor),
    )
    return None if math.isnan(found.guard) and math.isnan(found.monitor) else found


def _middle(shares: Numbers) -> float:
    known = shares[np.isfinite(shares)]
    return float(np.median(known)) if len(known) else math.nan
