from __future__ import annotations

import math

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import MOMENTUM, OPTIMIZER_STATE
from stepguard.diagnosis.rules.found import Found, number, times

_GROWN = 2.0
_LONG_MEMORY = 0.97
"""Momentum from which on it adds up over some thirty steps."""


def long_way(case: Case) -> Found | None:
    """Steps that go the same way for long have added up in the momentum."""
    gain, grown = case.now("gain"), case.grown_since("gain")
    pull = case.grown_since("pull")
    momentum = _momentum(case)
    step = int(case.track.step[case.since])
    built_up = grown >= _GROWN and pull >= _GROWN and not case.leapt("gain") >= _GROWN and case.share("gain") >= 0.4
    outlives = momentum is not None and momentum >= _LONG_MEMORY and gain >= 0.2 / (1 - momentum) and _is_plain(case)
    if not (built_up or outlives):
        return None
    said = [
        f"the update is {times(gain)} the learning rate times the gradient, {number(case.usual('gain', case.around(case.since)))} at "
        f"step {step}: gradients of many steps have added up"
    ]
    if momentum is not None:
        said.append(f"with a momentum of {momentum:g} up to {times(1 / (1 - momentum))} can add up")
    if case.grown_since("gradient") < 1:
        said.append(f"the gradient itself is {times(case.grown_since('gradient'))} as large")
    return Found(MOMENTUM, step, tuple(said))


def other_state(case: Case) -> Found | None:
    """The update is longer than before though the gradient is no larger, or no larger than it once was."""
    pull, gradient = case.grown("pull"), case.grown("gradient")
    if not (case.sudden and pull >= _GROWN and math.isfinite(gradient)):
        return None
    if gradient <= 1.5:
        said = f"the update is {times(pull)} as long per learning rate as lately, though the gradient is {times(gradient)} as large"
        return Found(
            OPTIMIZER_STATE,
            case.step,
            (said, "so what the optimizer remembers has changed: moments reset, or forgotten"),
        )
    return None


def _momentum(case: Case) -> float | None:
    hyper = case.hyper or {}
    if hyper.get("momentum"):
        return float(hyper["momentum"])
    betas = hyper.get("betas")
    return float(betas[0]) if betas else None


def _is_plain(case: Case) -> bool:
    """Whether the gain is 1 without momentum: not where the optimizer divides by what gradients usually are."""
    return bool((case.hyper or {}).get("momentum"))
