from __future__ import annotations

import math
from typing import NamedTuple

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
_NEAR = 25
"""Steps before a jump within which readings tell what was before."""
_SLOWLY = 0.4
"""The same where it took many steps, in which a model learns and becomes more sensitive."""
_STAIRS, _ALIKE = 60, 0.3
"""Steps before a rise in which others, of this share of it in logarithms, make it one of a staircase."""
_STILL = 20
"""Steps after the last rise in which a rate that rises little by little may be why."""
_LEAPS = 3.0
"""Times as long as the step before."""
_FIRST = 3
"""Steps of a run before which there is nothing to compare with."""


def rate(case: Case) -> Found | None:
    """The learning rate has risen, at once or little by little."""
    rise = _at_once(case) or _largest_rise(case)
    found = _jump(case, rise) if rise and not _climbs(case, rise) else None
    return found or _ramp(case, _rises_from(case))


class _Rise(NamedTuple):
    place: int
    """Of the first reading after it."""
    before: float
    now: float


def _at_once(case: Case) -> _Rise | None:
    """The last step, not long before, at which the rate was larger than at the one just before that."""
    track = case.track
    first = int(np.searchsorted(track.step, case.step - _LATER))
    lr, before = track.lr[first : case.at + 1], track.lr_before[first : case.at + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        held = (case.now("lr") >= lr / _LEAST) & (case.now("lr") <= _LEAST * lr)  # it has not gone on since
        jumps = np.flatnonzero((lr >= _LEAST * before) & held & (before > 0))
    if not len(jumps):
        return None
    return _Rise(first + int(jumps[-1]), float(before[jumps[-1]]), float(lr[jumps[-1]]))


def _largest_rise(case: Case) -> _Rise | None:
    """Where the rate rose most between readings, not long before, if it is as high still and rises nowhere else."""
    track = case.track
    first = max(0, int(np.searchsorted(track.step, case.step - _LATER)) - 1)
    lr = track.lr[first : case.at + 1]
    if len(lr) < 2 or not (lr > 0).all():
        return None
    place = first + int(np.argmax(np.log(lr[1:] / lr[:-1])))
    before, now = float(track.lr[place]), float(track.lr[place + 1])
    held = case.now("lr") >= now / _LEAST and now >= _LEAST * before
    return _Rise(place + 1, before, now) if held and not _goes_on(case, place) else None


def _climbs(case: Case, rise: _Rise) -> bool:
    """Whether it is one of several rises of a kind."""
    track = case.track
    first = int(np.searchsorted(track.step, track.step[rise.place] - _STAIRS))
    lr = track.lr[first : rise.place]
    with np.errstate(invalid="ignore", divide="ignore"):
        others = np.log(lr[1:] / lr[:-1]) >= _ALIKE * math.log(rise.now / rise.before)
    return int(others.sum()) >= 2


def _jump(case: Case, rise: _Rise) -> Found | None:
    """The rise is why, if r has grown by about as much since."""
    track, place, before, now = case.track, *rise
    near = np.arange(max(0, place - 5), place)
    near = near[track.step[near] >= track.step[place] - _NEAR]
    # Where no reading tells what r was before, it follows from what the rate makes of it.
    calm = case.usual("r", near) if len(near) else float(track.r[place]) * before / now
    longer = float(track.tau[place] / track.tau_before[place]) if track.tau_before[place] > 0 else now / before
    if not (_accounts(now / before, case.settled("r") / calm) and _accounts(now / before, longer)):
        return None
    step = int(track.step[place])
    said = f"the learning rate went from {number(before)} to {number(now)} at once, {times(now / before)} as large"
    highest = float(np.nanmax(track.lr[:place], initial=0.0))
    if now <= 1.1 * max(highest, float((case.hyper or {}).get("initial_lr") or 0.0)) and highest > 1.5 * before:
        again = (
            f"it had been as high before, up to {number(highest)}: the schedule began anew, and the model that it "
            f"meets is {times(case.grown_from_the_start('sensitivity'))} as sensitive as at the start"
        )
        return Found(WARM_RESTART, step, (said, again))
    return Found(LR_JUMP, step, (said,))


def _ramp(case: Case, start: int) -> Found | None:
    track = case.track
    before, now = float(track.lr[start]), case.now("lr")
    lower = track.step[start : case.at][track.lr[start : case.at] < 0.999 * now]
    rises_still = len(lower) and case.step - lower[-1] <= _STILL
    leaps = case.now("tau") >= _LEAPS * case.now("tau_before")  # which a rate that rises little by little does not
    if not before > 0 or not rises_still or leaps:
        return None
    calm = case.usual("r", np.arange(start, min(start + 5, case.at)))
    if not _accounts(now / before, case.settled("r") / calm, _SLOWLY):
        return None
    first = int(track.step[start])
    said = (
        f"the learning rate has grown from {number(before)} at step {first} to {number(now)}, {times(now / before)} as "
        "large, little by little"
    )
    return Found(LR_RAMP, first, (said,), certain=False)


def _accounts(rate: float, r: float, share: float = _ITS_SHARE) -> bool:
    return rate >= _LEAST and math.log(rate) >= share * math.log(max(r, 1.0))


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
    return Found(TOO_HIGH, case.step, (said,), certain=False)


def _rises_from(case: Case) -> int:
    """Place of the reading from which on the rate has not fallen, a long flat stretch before that left out."""
    lr = case.track.lr
    place = case.at
    while place > 0 and 0 < lr[place - 1] <= lr[place] * (1 + 1e-6):
        place -= 1
    while place < case.at and lr[place + 1] <= lr[place] * (1 + 1e-6):
        place += 1
    return place
