from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import LABEL_NOISE, OUTLIER, SMALLER_BATCH, UNUSUAL_BATCH
from stepguard.diagnosis.rules.found import Found, number, times
from stepguard.diagnosis.track import Numbers

_STANDS_OUT = 4.0
"""Times as far from the rest of its batch as usual, from which on a sample is an outlier."""
_OTHER = 2.0
"""Times as large or small as ever the inputs of a whole batch are where it is another kind of batch."""
_RATHER = 1.25
"""The same where r has risen suddenly."""
_SMALLER = 0.34
"""Share of the usual samples that a small batch has."""
_MORE_LOSS = 2.0
"""Times as much loss as any batch before had."""
_ALONE = 0.6
"""Share of the whole loss that one sample has where the batch is spoiled by it."""


class _Apart(NamedTuple):
    """How many times as large as its middle the largest of a batch is; at least 1 is usual."""

    now: float
    usual: float

    @property
    def times(self) -> float:
        return self.now / self.usual


def large_input(case: Case) -> Found | None:
    """The input of one sample stands out of its batch."""
    inputs = _apart(case, "input_norm_max", "input_norm")
    if not inputs.times >= _STANDS_OUT:
        return None
    said = (
        f"the largest input of the batch is {times(inputs.now)} as large as the median one, where "
        f"{times(inputs.usual)} is usual"
    )
    slopes = _apart(case, "r", "r_median")
    return Found(OUTLIER, case.step, (said, _of_slopes(case, slopes)) if slopes.times >= _STANDS_OUT else (said,))


def stands_out(case: Case) -> Found | None:
    """One sample moves much more than the rest of its batch."""
    slopes = _apart(case, "r", "r_median")
    if not slopes.times >= _STANDS_OUT or case.track.predicted[case.at]:
        return None
    return Found(OUTLIER, case.step, (_of_slopes(case, slopes),), certain=slopes.times >= 2 * _STANDS_OUT)


def other_size(case: Case) -> Found | None:
    """The batch has few samples."""
    for name in ("samples", "inputs"):
        usual, now = case.usual(name, case.before), case.now(name)
        if case.sudden and now <= _SMALLER * usual:
            said = f"the batch has {number(now)} samples, where {number(usual)} are usual: its gradient is mostly noise"
            return Found(SMALLER_BATCH, case.step, (said,), certain=False)
    return None


def other_inputs(case: Case) -> Found | None:
    """The inputs of the whole batch are of another size."""
    norms = case.track.input_norm[case.before]
    known, now = norms[np.isfinite(norms)], case.now("input_norm")
    far = _OTHER if not case.sudden else _RATHER
    if not len(known) or not (now > far * known.max() or now < known.min() / far):
        return None
    usual = float(np.median(known))
    said = (
        f"the inputs of the whole batch are {times(now / usual)} as large as usual: a norm of {number(now)} where "
        f"{number(usual)} is usual"
    )
    return Found(UNUSUAL_BATCH, _first_of(case, "input_norm", far * float(known.max())), (said,))


def large_loss(case: Case) -> Found | None:
    """One sample has nearly all of the loss, and that is more than usual."""
    whole = case.now("samples") * case.now("loss")
    alone = case.now("loss_max") / whole if whole else math.nan
    if not (_rose(case, "loss") and alone >= _ALONE and case.now("samples") > 2):
        return None
    said = (
        f"one sample has a loss of {number(case.now('loss_max'))}, {alone:.0%} of that of its batch: wrongly "
        "labelled, or another thing"
    )
    return Found(OUTLIER, case.step, (said,))


def wrong_labels(case: Case) -> Found | None:
    """The loss or the gradient of a batch is suddenly larger than any before, with inputs as ever."""
    loss = _burst(case, "loss")
    # A gradient alone may be large for many reasons; where the loss is known it would be too.
    gradient = _burst(case, "gradient") if loss is not None or math.isnan(case.now("loss")) else None
    if loss is None and gradient is None:
        return None
    said = []
    if loss is not None:
        said.append(
            f"the loss of batches from step {loss} on is up to {times(_times(case, loss, 'loss'))} that before, though "
            "the model was the same"
        )
    if gradient is not None:
        said.append(
            f"gradients from step {gradient} on are up to {times(_times(case, gradient, 'gradient'))} as large as "
            "before"
        )
    if not math.isnan(case.now("input_norm")):
        said.append("the inputs are as large as ever: the labels differ, or what the inputs show does")
    return Found(LABEL_NOISE, min(s for s in (loss, gradient) if s is not None), tuple(said))


def _of_slopes(case: Case, slopes: _Apart) -> str:
    return (
        f"one sample has r = {number(case.now('r'))}, half of the batch no more than {number(case.now('r_median'))}: "
        f"{times(slopes.now)} as much, where {times(slopes.usual)} is usual"
    )


def _apart(case: Case, largest: str, middle: str) -> _Apart:
    places = case.before
    with np.errstate(divide="ignore", invalid="ignore"):
        before = getattr(case.track, largest)[places] / getattr(case.track, middle)[places]
    known = before[np.isfinite(before)]
    usual = float(np.median(known)) if len(known) else 2.0
    middle_now = case.now(middle)
    return _Apart(case.now(largest) / middle_now if middle_now else math.nan, max(usual, 1.0))


def _rose(case: Case, name: str) -> bool:
    return case.now(name) >= _MORE_LOSS * case.most(name)


def _burst(case: Case, name: str) -> int | None:
    """The step from which on something is larger than it ever was before, if it became so in one go."""
    values, steps = getattr(case.track, name), case.track.step
    window = range(max(1, case.at - 15), case.at + 1)
    for place in window:
        before = values[_not_long_before(steps, place)]
        before = before[np.isfinite(before)]
        if len(before) >= 3 and values[place] >= _MORE_LOSS * before.max() and values[place] >= 3 * np.median(before):
            return int(steps[place])
    return None


def _not_long_before(steps: Numbers, place: int) -> slice:
    """Readings of the last sixty steps before, five at least and forty at most."""
    first = int(np.searchsorted(steps, steps[place] - 60))
    return slice(max(0, place - 40, min(first, place - 5)), place)


def _times(case: Case, since: int, name: str) -> float:
    values, first = getattr(case.track, name), int(np.searchsorted(case.track.step, since))
    before = values[_not_long_before(case.track.step, first)]
    return float(np.nanmax(values[first : case.at + 1]) / np.nanmedian(before))


def _first_of(case: Case, name: str, beyond: float) -> int:
    """The step from which on something is beyond a limit, up to this one."""
    values, place = getattr(case.track, name), case.at
    while place > 0 and values[place - 1] > beyond:
        place -= 1
    return int(case.track.step[place])
