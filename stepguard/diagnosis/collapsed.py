from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.columns import column
from stepguard.diagnosis.rules.found import number
from stepguard.diagnosis.track import Flags, Numbers
from stepguard.records import Run

_HALF = ("float16", "bfloat16", "half precision")
_ONE_IN_A_HUNDRED = 0.01
"""Share of the samples from which on a softmax has collapsed, as a monitor has it."""
_ALONG = 0.5
"""Cosine of the gradient with the weights from which on that is worth a word."""
_MANY = 0.05
"""Share of samples that must have collapsed in float32 to be more than a few that are learned to the last bit."""
_LOOKS = 3
"""Looks of the monitor that must have seen it."""


class Collapsed(NamedTuple):
    """A softmax that collapsed: from the first look that saw it on."""

    step: int
    began: int
    """The last look before at which there was headroom."""
    worst: int
    last: int
    beyond: int
    serious: bool
    certain: bool
    """Whether it is the dtype's doing: half precision has so few bits that a run that goes well collapses in it."""
    evidence: tuple[str, ...]


def collapsed(run: Run) -> Collapsed | None:
    """Whether and when the softmax collapsed, as far as a monitor looked, or else the guard; None if it did not."""
    looks = _by_a_monitor(run) if len(run.collapses) else _by_the_guard(run)
    beyond = np.flatnonzero(looks.collapsed)
    if not len(beyond):
        return None
    step, share, first, worst = looks.step, looks.share, int(beyond[0]), int(np.argmax(looks.share))
    half = any(name in looks.dtype for name in _HALF)
    said = (
        f"at step {step[first]:.0f} the sum of the softmax was exactly 1 in {looks.dtype} for {share[first]:.1%} of "
        f"the samples, at step {step[worst]:.0f} for {share[worst]:.1%}: those samples teach nothing any more"
    )
    return Collapsed(
        step=int(step[first]),
        began=int(step[max(first - 1, 0)]),
        worst=int(step[worst]),
        last=int(step[beyond[-1]]),
        beyond=len(beyond),
        serious=half or bool((share >= _MANY).any()) and len(beyond) >= _LOOKS,
        certain=half,
        evidence=(said, *_course(run, first)),
    )


class _Looks(NamedTuple):
    step: Numbers
    share: Numbers
    collapsed: Flags
    dtype: str


def _by_a_monitor(run: Run) -> _Looks:
    columns = run.collapses.columns
    beyond = column(run.collapses, "headroom_nats") <= 0
    dtype = str(columns["dtype"][int(np.argmax(beyond))])
    return _Looks(column(run.collapses, "step"), column(run.collapses, "collapse"), beyond, dtype)


def _by_the_guard(run: Run) -> _Looks:
    """Of half precision the guard sees it too, at its own readings."""
    share = column(run.readings, "collapse")
    known = np.isfinite(share)
    share = share[known]
    return _Looks(column(run.readings, "step")[known], share, share > _ONE_IN_A_HUNDRED, "half precision")


def _course(run: Run, first: int) -> tuple[str, ...]:
    """How it came to that, as the monitor tells."""
    if not len(run.collapses):
        return ()
    step, headroom = column(run.collapses, "step"), column(run.collapses, "headroom_nats")
    said = []
    if first and headroom[0] > 0:
        lost = float(headroom[0] - headroom[first]) / max(float(step[first] - step[0]), 1.0)
        said.append(
            f"headroom fell from {number(float(headroom[0]))} nats at step {step[0]:.0f}, {number(lost)} a step"
        )
    alignment = run.collapses[first].nlm_alignment
    if alignment is not None and alignment > _ALONG:
        said.append(f"gradients were along the weights (cosine {alignment:.2f}): logits are scaled, nothing is learned")
    return tuple(said)
