from __future__ import annotations

import math

import numpy as np

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import LR_JUMP, LR_RAMP, TOO_HIGH, WARM_RESTART
from stepguard.diagnosis.rules.found import Found, number, times

_LEAST = 1.5
"""Times as large a learning rate must be to be told of."""
_ITS_SHARE = 0.5
"""Of the growth of r that a cause accounts for."""
_AS_FAST = 0.3
"""Share of the pace between two readings at which a rate rises elsewhere too where it rises all the time."""
_LATER = 40
"""Steps after a jump of the rate in which that is why."""
_FIRST = 3
"""Steps of a run before which there is nothing to compare with."""


def rate(case: Case) -> Found | None:
    """The learning rate has risen, at once or little by little."""
    place = _largest_rise(case)
    found = _jump(case, place) if place is not None and not _goes_on(case, place) else None
    return found or _ramp(case, _rises_from(case))


def _largest_rise(case: Case) -> int | None:
    """Place of the reading after which the rate rose most, not long before, if it is still about as high."""
    track = case.track
    first = int(np.searchsorted(track.step, case.step - _LATER))
    lr = track.lr[max(0, first - 1) : case.at + 1]
    if len(lr) < 2 or not (lr > 0).all():
        return None
    place = int(np.argmax(np.log(lr[1:] / lr[:-1])))
    return max(0, first - 1) + place if lr[-1] >= lr[place + 1] / _LEAST else None


def _jump(case: Case, place: int) -> Found | None:
    """The rate that came after this place is why, if what came before was within the target by about as much."""
    track = case.track
    before, now = float(track.lr[place]), float(track.lr[place + 1])
    step = int(track.step[place + 1])
    calm = case.usual("r", np.arange(max(0, place - 4), place + 1))
    if not now >= _LEAST * before or not _accounts(now / before, case.settled("r") / calm):
        return None
    said = f"the learning rate went from {number(before)} to {number(now)} at once, {times(now / before)} as large"
    highest = max(float(np.nanmax(track.lr[: place + 1])), float((case.hyper or {}).get("initial_lr") or 0.0))
    if now <= 1.1 * highest and highest > 1.5 * before:
        again = (
            f"it had been as high before, up to {number(highest)}: the schedule began anew, and the model that it meets "
            f"is {times(case.grown_from_the_start('sensitivity'))} as sensitive as at the start"
        )
        return Found(WARM_RESTART, step, (said, again))
    return Found(LR_JUMP, step, (said,))


def _ramp(case: Case, start: int) -> Found | None:
    track = case.track
    before, now = float(track.lr[start]), case.now("lr")
    if start == case.at or not before > 0:
        return None
    calm = case.usual("r", np.arange(start, min(start + 5, case.at)))
    if not _accounts(now / before, case.settled("r") / calm):
        return None
    first = int(track.step[start])
    said = (
        f"the learning rate has grown from {number(before)} at step {first} to {number(now)}, {times(now / before)} as "
        "large, little by little"
    )
    return Found(LR_RAMP, first, (said,))


def _accounts(rate: float, r: float) -> bool:
    return rate >= _LEAST and math.log(rate) >= _ITS_SHARE * math.log(max(r, 1.0))


def _goes_on(case: Case, place: int) -> bool:
    """Whether the rate rises about as fast elsewhere as after this place, between two readings that may lie apart."""
    track, start = case.track, _rises_from(case)
    gap, grown = float(track.step[place + 1] - track.step[place]), math.log(track.lr[place + 1] / track.lr[place])
    last = min(case.at + 8, len(track) - 1)
    first = min(start, place)
    others = math.log(max(track.lr[last] / track.lr[first], 1e-300)) - grown
    length = float(track.step[last] - track.step[first]) - gap
    return bool(length > 0 and others / length >= _AS_FAST * grown / gap)


def from_the_start(case: Case) -> Found | None:
    """The very first steps are too long already."""
    if case.step >= _FIRST or not case.now("r") > 0:
        return None
    lr, fits = case.now("lr"), case.now("lr") * case.now("target") / case.now("r")
    said = f"at a learning rate of {number(lr)} the first steps are too long; {number(fits)} would have been the limit"
    return Found(TOO_HIGH, case.step, (said,), certain=math.isfinite(fits))


def _rises_from(case: Case) -> int:
    """Place of the reading from which on the rate has not fallen, a long flat stretch before that left out."""
    lr = case.track.lr
    place = case.at
    while place > 0 and 0 < lr[place - 1] <= lr[place] * (1 + 1e-6):
        place -= 1
    while place < case.at and lr[place + 1] <= lr[place] * (1 + 1e-6):
        place += 1
    return place
