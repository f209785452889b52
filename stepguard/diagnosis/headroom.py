from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.finding import Diagnosis
from stepguard.diagnosis.track import Flags, Track

_PHASES = 6
_EACH = 10
"""Readings that a phase must have to be told of."""
_BORNE = 0.95
"""Share of the readings that would have kept to the target."""


class Phase(NamedTuple):
    """How large the learning rate could have been in one part of a run."""

    first: int
    last: int
    readings: int
    lr: float
    """That was asked for, in the middle."""
    times: float
    """As large as it could have been for 95% of the readings to keep to their target."""
    borne: float
    """The rate that this is."""


class Headroom(NamedTuple):
    """How far the learning rate could go, in the parts of a run.

    Attributes:
        phases: In the order of steps.
        left_out: How many readings were of no use for it.
        until: The step from which on none was: what was let through may have damaged the model. None if all were.
    """

    phases: tuple[Phase, ...]
    left_out: int
    until: int | None


def headroom(track: Track, diagnosis: Diagnosis) -> Headroom | None:
    """How large the learning rate could have been; None where too little is known.

    r is linear in the learning rate, so ``target / r`` is how many times as large it could have been. Of no use are
    steps that were beyond because of a fault, and all after one that was let through.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis.diagnose import diagnose
        >>> from stepguard.diagnosis.track import track_of
        >>> from stepguard.records import Reading, Run
        >>> run = Run(Path("stepguard.jsonl"))
        >>> for step in range(40):
        ...     run.readings.append(Reading(step, 0.25, 1.0, 4.0, 1.0, 1.0, 0.1, 0.1, target=1.0))
        >>> phase = headroom(track_of(run), diagnose(run)).phases[0]
        >>> phase.lr, phase.times, phase.borne
        (0.1, 4.0, 0.4)
    """
    useful, until = _useful(track, diagnosis)
    if useful.sum() < _EACH:
        return None
    step = track.step[useful]
    lr, times = track.lr[useful], track.target[useful] / track.r[useful]
    count = int(min(_PHASES, len(step) // _EACH))
    edges = np.linspace(step[0], step[-1] + 1, count + 1)
    places = np.searchsorted(step, edges)
    phases = []
    for low, high in zip(places[:-1], places[1:], strict=True):
        if high - low >= min(_EACH, len(step)):
            rate, room = float(np.median(lr[low:high])), float(np.quantile(times[low:high], 1 - _BORNE))
            phases.append(Phase(int(step[low]), int(step[high - 1]), int(high - low), rate, room, rate * room))
    known = np.isfinite(track.r) & (track.lr > 0)
    return Headroom(tuple(phases), int((known & ~useful).sum()), until) if phases else None


def _useful(track: Track, diagnosis: Diagnosis) -> tuple[Flags, int | None]:
    with np.errstate(invalid="ignore"):
        useful = (track.r > 0) & np.isfinite(track.r) & (track.lr > 0) & np.isfinite(track.target)
        within = track.r <= track.target
    for finding in diagnosis.findings:
        if finding.serious:
            useful &= within | (track.step < finding.step) | (track.step > finding.last)
    main = diagnosis.main
    through = track.breach & (track.scale == 1)
    if main and (through & (track.step >= main.step)).any():
        return np.asarray(useful & (track.step < main.step)), main.step
    return np.asarray(useful), None
