from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.track import Flags, Numbers, Track
from stepguard.records import Run

_ABOUT_STEP = re.compile(r"at about step (\d+)")
_LATE = 20
"""Steps that a crossing may come after it was forecast for."""
_ABOUT = 1.05
"""Times its target that a step may be made which is kept to it: a prediction may be a little off."""


class Peak(NamedTuple):
    """The largest r, and where."""

    step: int
    r: float


class Forecast(NamedTuple):
    """A crossing that was announced, and whether it came."""

    step: int
    """At which it was said."""
    crossing: int
    """The step that it was said of."""
    came: int | None
    """The first step beyond the target after that; None if there was none up to soon after the one that was said."""
    over: bool
    """Whether the run has come that far."""


class Done(NamedTuple):
    """What the guard did with the steps of a run: how many were what."""

    measured: int
    beyond: int
    let_through: int
    shortened: int
    lengthened: int
    withheld: int
    skipped: int
    unmeasured: int
    not_finite: int
    asked: Peak | None
    """Of the steps as the optimizer asked for them, those that were not finite left out."""
    made: Peak | None
    """Of the steps as they were made."""
    shortest: float
    """The smallest factor above 0 that a step was multiplied by."""
    longest_held: int
    """Steps in a row that were shortened."""
    cures: tuple[tuple[int, int | None], ...]
    """From which step to which perpGrad was on; None where it was at the end."""
    forecasts: tuple[Forecast, ...]

    def kept_to(self, target: float) -> bool:
        """Whether steps were beyond the target, and none was made so."""
        cut = self.shortened + self.withheld
        return bool(cut and not self.let_through and self.made and self.made.r <= _ABOUT * target)


def done(run: Run, track: Track) -> Done | None:
    """What the guard did; None if it had nothing to do with.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis.track import track_of
        >>> from stepguard.records import Reading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> run.readings.append(Reading(3, 4.0, 4.0, 1.0, 12.6, 0.25, 0.1, 0.025, target=1.0))
        >>> found = done(run, track_of(run))
        >>> found.shortened, found.asked, found.made
        (1, Peak(step=3, r=4.0), Peak(step=3, r=1.0))
    """
    kinds = [event.kind for event in run.events]
    if not len(run.readings) and not {"skipped", "unmeasured"} & set(kinds):
        return None
    scale = track.scale
    shortened = (scale > 0) & (scale < 1)
    with np.errstate(invalid="ignore"):
        made = np.where(scale == 0, 0.0, track.r * scale)
    return Done(
        measured=len(track),
        beyond=int(track.breach.sum()),
        let_through=int((track.breach & (scale == 1)).sum()),
        shortened=int(shortened.sum()),
        lengthened=int((scale > 1).sum()),
        withheld=int((scale == 0).sum()),
        skipped=kinds.count("skipped"),
        unmeasured=kinds.count("unmeasured"),
        not_finite=int((~np.isfinite(track.r)).sum()),
        asked=_peak(track.step, track.r),
        made=_peak(track.step, made),
        shortest=float(scale[shortened].min()) if shortened.any() else 1.0,
        longest_held=_longest(track.step, shortened),
        cures=_cures(run),
        forecasts=_forecasts(run, track.step[track.breach]),
    )


def _peak(step: Numbers, r: Numbers) -> Peak | None:
    known = np.flatnonzero(np.isfinite(r))
    if not len(known):
        return None
    place = known[np.argmax(r[known])]
    return Peak(int(step[place]), float(r[place]))


def _longest(step: Numbers, chosen: Flags) -> int:
    steps = step[chosen]
    if not len(steps):
        return 0
    ends = np.flatnonzero(np.diff(steps) > 1) + 1
    return int(np.diff(np.concatenate([[0], ends, [len(steps)]])).max())


def _cures(run: Run) -> tuple[tuple[int, int | None], ...]:
    found: list[tuple[int, int | None]] = []
    for event in run.events:
        if event.kind == "cure_on":
            found.append((event.step, None))
        elif event.kind == "cure_off" and found:
            found[-1] = (found[-1][0], event.step)
    return tuple(found)


def _forecasts(run: Run, beyond: Numbers) -> tuple[Forecast, ...]:
    last = int(run.readings.columns["step"][-1]) if len(run.readings) else -1
    found = []
    for event in run.events:
        said = _ABOUT_STEP.search(event.message) if event.kind == "forecast" else None
        if said:
            crossing = int(said[1])
            place = int(np.searchsorted(beyond, event.step, "right"))
            came = int(beyond[place]) if place < len(beyond) else None
            known = came if came is not None and came <= crossing + _LATE else None
            found.append(Forecast(event.step, crossing, known, over=known is not None or last > crossing + _LATE))
    return tuple(found)
