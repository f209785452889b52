from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.finding import Finding
from stepguard.diagnosis.track import Numbers, Track

_MEASURED = {
    "loss": "loss",
    "largest loss of a sample": "loss_max",
    "length of the update": "tau",
    "gradient norm": "gradient",
    "weight norm": "weights",
    "r of the median sample": "r_median",
    "samples": "samples",
    "inputs": "inputs",
    "norm of the median input": "input_norm",
    "norm of the largest input": "input_norm_max",
}
_FACTORS = {
    "learning rate": "lr",
    "gradient": "gradient",
    "gain": "gain",
    "update per learning rate": "pull",
    "sensitivity": "sensitivity",
}
_BEFORE, _AFTER, _LEAST = 40, 20, 3
"""Steps around one that a close look shows, and readings before it, at least."""


class Measured(NamedTuple):
    """Something that was measured at a step, beside what was usual before; nan is unknown."""

    name: str
    usual: float
    at: float

    @property
    def times(self) -> float:
        """How many times as large it is."""
        return self.at / self.usual if self.usual else math.nan


class Zoom(NamedTuple):
    """The steps around one, with r and each of its factors in multiples of what it was before."""

    step: Numbers
    multiples: dict[str, Numbers]


def place_of(track: Track, step: int) -> int | None:
    """Where among the readings a step is; None if it was not measured."""
    place = int(np.searchsorted(track.step, step))
    return place if place < len(track) and track.step[place] == step else None


def measured_at(track: Track, finding: Finding) -> tuple[Measured, ...]:
    """What was measured at the first step of a finding, beside what was usual.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis import diagnose
        >>> from stepguard.diagnosis.track import track_of
        >>> from stepguard.records import Reading, Run
        >>> run = Run(Path("stepguard.jsonl"))
        >>> for step in range(30):
        ...     r = 8.0 if step == 25 else 0.1
        ...     run.readings.append(Reading(step, r, r, 1.0, 3 * r, 1.0, 0.1, 0.1, target=1.0, loss=r))
        >>> [measured for measured in measured_at(track_of(run), diagnose(run).main) if measured.name == "loss"]
        [Measured(name='loss', usual=0.1, at=8.0)]
    """
    place = place_of(track, finding.step)
    if place is None:
        return ()
    case = Case(track, place)
    found = (Measured(name, case.usual(field), case.now(field)) for name, field in _MEASURED.items())
    return tuple(measured for measured in found if not math.isnan(measured.at))


def zoom(track: Track, finding: Finding) -> Zoom | None:
    """The readings around the first step of a finding; None where its factors are not known."""
    place = place_of(track, finding.step)
    if place is None or not finding.factors:
        return None
    first, last = np.searchsorted(track.step, [finding.step - _BEFORE, finding.step + _AFTER + 1])
    near = slice(max(0, min(int(first), place - _LEAST)), int(last))
    usual = {"r": Case(track, place).usual("r"), **{factor.name: factor.before for factor in finding.factors}}
    multiples = {
        name: getattr(track, _FACTORS.get(name, name))[near] / before for name, before in usual.items() if before > 0
    }
    return Zoom(track.step[near], multiples) if multiples else None
