from __future__ import annotations

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import MOMENTUM, OPTIMIZER_STATE, WEIGHTS
from stepguard.diagnosis.rules.found import Found, times

_GROWN = 2.0
_BY_SETTING = {"weight_decay": WEIGHTS, "beta2": OPTIMIZER_STATE, "alpha": OPTIMIZER_STATE, "eps": OPTIMIZER_STATE}
_LATER = 100
"""Steps after a change in which it may be why."""
_LONG_MEMORY = 0.97
"""Momentum from which on it adds up over some thirty steps."""


def changed_settings(case: Case) -> Found | None:
    """Somebody has changed a setting of the optimizer, not long before."""
    for step, name, before, now in case.changes[::-1]:
        cause = MOMENTUM if name in ("momentum", "beta1") and now > before else _BY_SETTING.get(name)
        if name == "weight_decay" and now >= 0 or cause is None or case.step - step > _LATER:
            continue
        return Found(
            cause, step, (f"the optimizer's {name} was changed from {before:g} to {now:g} at about step {step}",)
        )
    return None


def long_way(case: Case) -> Found | None:
    """Steps that go the same way for long have added up in the momentum."""
    momentum = _momentum(case)
    grown, pull, share = case.grown_since("gain"), case.grown_since("pull"), case.share("gain")
    keeps = momentum is not None and momentum >= _LONG_MEMORY
    built_up = grown >= _GROWN and pull >= _GROWN and share >= (0.2 if keeps else 0.4)
    if not (built_up and not case.leapt("gain") >= _GROWN) and not (
        keeps and _is_plain(case) and case.settled("gain") >= 3
    ):
        return None
    step = int(case.track.step[case.since])
    said = [
        f"the update is {times(case.settled('gain'))} as long as learning rate times gradient, at step {step} it was "
        f"{times(case.usual('gain', case.around(case.since)))}: the gradients of many steps have added up"
    ]
    if momentum is not None:
        said.append(f"with a momentum of {momentum:g} up to {times(1 / (1 - momentum))} can add up")
    if case.grown_since("gradient") < 1:
        said.append(f"the gradient itself is {times(case.grown_since('gradient'))} as large")
    return Found(MOMENTUM, step, tuple(said), certain=False)


def other_state(case: Case) -> Found | None:
    """The update is much longer than the one just before, though neither rate nor gradient are larger."""
    pull, gradient = case.grown("pull"), case.grown("gradient")
    at_once = case.now("tau") >= _GROWN * case.now("tau_before") or not case.now("tau_before") > 0 and case.sudden
    if not (at_once and pull >= _GROWN and gradient <= 1.5):
        return None
    said = (
        f"the update is {times(pull)} as long per learning rate as lately, though the gradient is {times(gradient)} as "
        "large"
    )
    more = "what the optimizer remembers is another: moments that were reset, or forgotten"
    return Found(OPTIMIZER_STATE, case.step, (said, more))


def _momentum(case: Case) -> float | None:
    hyper = case.hyper or {}
    if hyper.get("momentum"):
        return float(hyper["momentum"])
    betas = hyper.get("betas")
    return float(betas[0]) if betas else None


def _is_plain(case: Case) -> bool:
    """Whether the gain is 1 without momentum: not where the optimizer divides by what gradients usually are."""
    return bool((case.hyper or {}).get("momentum"))
