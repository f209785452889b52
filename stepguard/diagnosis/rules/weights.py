from __future__ import annotations

import math

import numpy as np

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import WEIGHTS
from stepguard.diagnosis.rules.found import Found, number, times

_PATH = 2.0
"""Times the length of all steps between two readings by which weights cannot have grown by them."""
_LEAST = 0.02
"""Share by which weights must have changed to be told of."""
_LATER = 40
"""Steps after a change in which it may be why."""
_GROWN = 1.25
_ALONG = 0.85
"""Share of the steps' length that went into the length of the weights, where they grow rather than learn."""


def changed_from_outside(case: Case) -> Found | None:
    """The weights have grown by something else than the optimizer."""
    place = _known_at(case)
    pair = None if place is None else _strange(case, place)
    if place is None or pair is None:
        return None
    earlier, later = pair
    before, now = float(case.track.weights[earlier]), float(case.track.weights[place])
    began, seen = int(case.track.step[earlier]) + 1, int(case.track.step[later])
    when = f"from step {seen} on" if began == seen else f"from some step between {began} and {seen} on"
    said = (
        f"{when} the norm of the weights went from {number(before)} to {number(now)}, {times(now / before)} as "
        "large, further than all steps of the optimizer together: something else changes them"
    )
    return Found(WEIGHTS, began, (said,))


def along_themselves(case: Case) -> Found | None:
    """The optimizer's steps are along the weights."""
    place, start = _known_at(case), case.since
    if place is None or place <= start:
        return None
    before, now = case.usual("weights", np.arange(start, min(start + 3, place))), float(case.track.weights[place])
    path = _path(case, start, place)
    decay = float((case.hyper or {}).get("weight_decay") or 0.0)
    if not (before > 0 and now / before >= _GROWN and now - before >= (_ALONG if decay >= 0 else 0.0) * path):
        return None
    first = int(case.track.step[start])
    why = f"the weight decay is {decay:g}" if decay < 0 else "as with a negative weight decay"
    said = (
        f"the norm of the weights has grown from {number(before)} to {number(now)} since step {first}, by "
        f"{min((now - before) / path, 1.0):.0%} of all that the optimizer moved: its steps are along the weights "
        f"themselves, {why}"
    )
    return Found(WEIGHTS, first, (said,))


def _known_at(case: Case) -> int | None:
    """The step, or the next one if it is known only there."""
    track = case.track
    for place in (case.at, case.at + 1):
        if place < len(track) and track.step[place] - case.step <= 1 and math.isfinite(track.weights[place]):
            if place == case.at or track.scale[case.at] * track.r[case.at] <= 2 * track.target[case.at]:
                return place
    return None


def _strange(case: Case, place: int) -> tuple[int, int] | None:
    """Between which readings, not long before, weights first became what no steps could make of them."""
    track = case.track
    first = int(np.searchsorted(track.step, case.step - _LATER))
    known = [i for i in range(max(0, first - 1), place + 1) if math.isfinite(track.weights[i])]
    for earlier, later in zip(known, known[1:], strict=False):
        grown = float(track.weights[later] - track.weights[earlier])
        if grown > max(_LEAST * track.weights[earlier], _PATH * _path(case, earlier, later)):
            return earlier, later
    return None


def _path(case: Case, first: int, last: int) -> float:
    """About how long all steps together were from one reading up to another."""
    made = (case.track.tau * case.track.scale)[first : last + 1]
    steps = np.diff(case.track.step[first : last + 1])
    longer = np.fmax(made[:-1], made[1:]) if len(steps) > 1 or steps.sum() > 1 else made[:-1]
    return float(np.nansum(longer * steps))
