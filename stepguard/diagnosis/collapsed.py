from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.rules.found import number
from stepguard.records import Run

_HALF = ("float16", "bfloat16")
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
    """Whether and when the softmax collapsed, as far as a monitor looked; None if it did not."""
    columns = run.collapses.columns
    if not len(run.collapses):
        return None
    step, headroom = np.array(columns["step"]), np.array(columns["headroom_nats"], dtype=float)
    share = np.array(columns["collapse"], dtype=float)
    beyond = np.flatnonzero(headroom <= 0)
    if not len(beyond):
        return None
    worst = int(np.argmax(share))
    half = any(name in str(columns["dtype"][beyond[0]]) for name in _HALF)
    many = np.flatnonzero(share >= _MANY)
    first = int(beyond[0])
    dtype = str(columns["dtype"][first])
    said = [
        f"at step {step[first]} the sum of the softmax was exactly 1 in {dtype} for {share[first]:.1%} of the samples, "
        f"at step {step[worst]} for {share[worst]:.1%}: those samples teach nothing any more"
    ]
    if first and headroom[0] > 0:
        lost = (headroom[0] - headroom[first]) / max(int(step[first] - step[0]), 1)
        said.append(f"headroom fell from {number(float(headroom[0]))} nats at step {step[0]}, {number(lost)} a step")
    alignment = columns["nlm_alignment"][first]
    if alignment is not None and alignment > 0.5:
        said.append(
            f"gradients were along the weights (cosine {alignment:.2f}): the logits are scaled, nothing is learned"
        )
    return Collapsed(
        step=int(step[first]),
        began=int(step[max(first - 1, 0)]),
        worst=int(step[worst]),
        last=int(step[beyond[-1]]),
        beyond=len(beyond),
        serious=half or bool(len(many)) and len(beyond) >= _LOOKS,
        certain=half,
        evidence=tuple(said),
    )
