from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.about import About
from stepguard.diagnosis.track import Track

TARGETS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SURELY_BELOW = 0.25
"""Of its target what a step that the guard does not measure is expected to be below."""


class OtherTarget(NamedTuple):
    """What a target would have meant for a run, with all else as it was."""

    target: float
    own: bool
    """Whether it is the one that was in force."""
    beyond: int
    """Steps that would have been shortened, or withheld where they were not finite."""
    share: float
    """Of all steps."""
    at_least: bool
    """Whether steps that were not measured may have been beyond as well."""
    factor: float
    """By which those would have been multiplied, on average; nan if there is none."""


def other_targets(track: Track, about: About) -> tuple[OtherTarget, ...]:
    """How many steps would have been clamped at other targets, and by how much.

    Steps that were not measured count as below, for they are expected to be below a quarter of the target. What a
    shortened step would have changed in those after it nobody knows.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis.about import about
        >>> from stepguard.diagnosis.track import track_of
        >>> from stepguard.records import Reading, Run
        >>> run = Run(Path("stepguard.jsonl"))
        >>> for step in range(4):
        ...     run.readings.append(Reading(step, 0.2 * step, 1.0, 5.0, 1.0, 1.0, 0.1, 0.1, target=1.0))
        >>> [(t.target, t.beyond, t.share) for t in other_targets(track_of(run), about(run))][:3]
        [(0.25, 2, 0.5), (0.5, 1, 0.25), (1.0, 0, 0.0)]
    """
    if not len(track):
        return ()
    own = about.target
    chosen = sorted({*TARGETS, *([own] if math.isfinite(own) else [])})
    unseen = about.steps > len(track)
    found = []
    for target in chosen:
        beyond = ~(track.r <= target)
        r = track.r[beyond]
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.where(np.isfinite(r), target / r, 0.0)
        blind = unseen and (about.cadence != "auto" or not target >= _SURELY_BELOW * own)
        share = int(beyond.sum()) / about.steps
        factor = float(factors.mean()) if len(factors) else math.nan
        found.append(OtherTarget(target, target == own, int(beyond.sum()), share, blind, factor))
    return tuple(found)
