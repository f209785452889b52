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
_AT_ONCE = 0.5
"""Share of its growth that a rate makes in one go where it jumps."""
_FIRST = 3
"""Steps of a run before which there is nothing to compare with."""


def rate(case: Case) -> Found | None:
    """The learning rate has risen, at once or little by little."""
    factor = next(f for f in case.factors if f.name == "learning rate")
    if not (factor.times >= _LEAST and factor.share >= _ITS_SHARE):
        return None
    start = _rises_from(case)
    if start == case.at:
        return None
    lr = case.track.lr[start : case.at + 1]
    logs = np.log(lr)
    whole, largest = logs[-1] - logs[0], int(np.argmax(np.diff(logs)))
    before, now = float(lr[largest]), float(lr[-1])
    began = int(case.track.step[start + largest + 1])
    if np.diff(logs)[largest] < _AT_ONCE * whole:
        first = int(case.track.step[start])
        said = (
            f"the learning rate has grown from {number(float(lr[0]))} at step {first} to {number(now)}, {times(now / lr[0])}"
            " as large, little by little"
        )
        return Found(LR_RAMP, first, (said,))
    said = f"the learning rate went from {number(before)} to {number(now)} at once, {times(now / before)} as large"
    highest = float(np.nanmax(case.track.lr[: start + 1], initial=0.0))
    if now <= 1.1 * highest and highest > 1.1 * before:
        again = (
            f"it had been as high before, up to {number(highest)}: the schedule began anew, and the model that it meets is "
            f"{times(case.grown_from_the_start('sensitivity'))} as sensitive as at the start"
        )
        return Found(WARM_RESTART, began, (said, again))
    return Found(LR_JUMP, began, (said,))


def from_the_start(case: Case) -> Found | None:
    """The very first steps are too long already."""
    if case.step >= _FIRST or not case.now("r") > 0:
        return None
    lr, fits = case.now("lr"), case.now("lr") * case.now("target") / case.now("r")
    said = f"at a learning rate of {number(lr)} the first steps are too long; {number(fits)} would have been the limit"
    return Found(TOO_HIGH, case.step, (said,), certain=math.isfinite(fits))


def _rises_from(case: Case) -> int:
    """Place of the reading from which on the rate has not fallen."""
    lr = case.track.lr
    place = case.at
    while place > 0 and lr[place - 1] <= lr[place] * (1 + 1e-6) and lr[place - 1] > 0:
        place -= 1
    # A long flat stretch before it is no part of the rise.
    while place < case.at - 1 and lr[place + 1] <= lr[place] * (1 + 1e-6):
        place += 1
    return place
