from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch.optim import Optimizer


class Known(NamedTuple):
    """What is to be known of an optimizer that keeps more than averages of gradients. Names are keys of its state."""

    points: tuple[str, ...] = ()
    """Positions in parameter space, made as copies of the parameters."""
    sums: tuple[str, ...] = ()
    """Sums over the steps with the learning rate in them, made as zeros."""
    numbers: tuple[str, ...] = ()
    """The like in its parameter groups."""
    weighs: bool = False
    """Whether its average weighs each step by the highest learning rate so far."""
    restarts: tuple[str, ...] = ()
    """Counters that make it begin anew when they are zero."""
    clamped: str = ""
    """What to tell of it to whom has its steps clamped."""
    unmeasured: str = ""
    """Why its steps cannot be measured."""


_SAM = (
    "takes gradients elsewhere than where its step starts from, and a step that does so is not measured. Attach to its "
    "base_optimizer instead, with forward=, a function that runs the model on a batch and returns its logits"
)
_LOMO = (
    "moves the parameters during backward and not in step(), so its steps are neither seen nor changed. Train with an "
    "optimizer that steps after backward"
)
_LONG = (
    "{}, so after a step that was shortened it asks for long ones for a while. They are shortened as well: r stays at "
    'the target, for more steps than the cause lasts. If that binds too often, lower the learning rate or use "observe"'
)

_REFERENCE = (
    "finds the parameters anew at each step, from where training began and a scale that it learns. With steps "
    "shortened that scale may fall to 0, which is back where training began, and stay there. Try "
    'action="observe", which leaves it alone'
)
_DISTANCE = Known(
    points=("z",),
    sums=("s", "sk", "alpha_k", "exp_avg", "exp_avg_diff"),
    numbers=("d", "numerator_weighted", "gsq_weighted"),
)
_DISTANCE_ONLY = _DISTANCE._replace(clamped=_LONG.format("takes its rate from the longest way it thinks to have come"))

# By a part of a class's name, which subclasses and the other packages' own version of it have in common; the first
# that fits counts. By the keys of a state alone they cannot be told apart: "s" and "z" are something else in each.
KNOWN = {
    "WSAM": Known(),  # its first gradients are those where its step starts from
    "SAM": Known(unmeasured=_SAM),
    "LOMO": Known(unmeasured=_LOMO),
    "ScheduleFree": Known(points=("z",), weighs=True),
    "Lookahead": Known(points=("slow_params", "slow_buffer", "slow_weights", "cached_params")),
    "Ranger": Known(points=("slow_buffer", "lookahead_params")),
    "ASGD": Known(points=("ax",)),
    "SRMM": Known(points=("mov_avg_param",), sums=("mov_avg_grad",)),
    "SPlus": Known(sums=("ema",)),
    "AccSGD": Known(sums=("momentum_buffer",)),
    "AdaFactor": Known(sums=("exp_avg",), clamped=_LONG.format("has the learning rate in its momentum")),
    "Adafactor": Known(sums=("exp_avg",)),
    "DAdaptSGD": _DISTANCE_ONLY,
    "DAdaptAdaGrad": _DISTANCE_ONLY,
    "DAdapt": _DISTANCE,
    "MADGRAD": Known(
        sums=("s", "grad_sum_sq"),
        clamped=_LONG.format("is held by what it has summed up over all its steps rather than by where it is"),
    ),
    "AdaMod": Known(
        sums=("exp_avg_lr",), clamped=_LONG.format("remembers how long its steps have been for a thousand of them")
    ),
    "FTRL": Known(
        sums=("z", "n"),
        clamped=_LONG.format("finds the parameters anew from its sums at each step, wherever they were put"),
    ),
    "Nero": Known(clamped=_LONG.format("puts the parameters back on its constraints at each step")),
    "TRAC": Known(clamped=_REFERENCE),
    "LBFGS": Known(restarts=("n_iter",)),
}


def known_parts(optimizer: Optimizer) -> Iterator[tuple[Optimizer, Known]]:
    """The optimizer and those that it wraps, as far as there is something to be known of them."""
    seen: set[int] = set()
    part: object = optimizer
    while isinstance(part, Optimizer) and id(part) not in seen:
        seen.add(id(part))
        known = _known(part)
        if known is not None:
            yield part, known
        part = getattr(part, "optimizer", None) or getattr(part, "base_optimizer", None)


def cautions(optimizer: Optimizer, changes: bool) -> Iterator[tuple[str, bool]]:
    """What to tell when a guard is attached.

    Args:
        optimizer: The one that is guarded.
        changes: Whether its steps may be changed.

    Yields:
        A sentence, and whether it says that there will be no measurement.
    """
    for part, known in known_parts(optimizer):
        said = known.unmeasured or (known.clamped if changes else "")
        if said:
            yield f"{type(part).__name__} {said}", bool(known.unmeasured)


def _known(optimizer: Optimizer) -> Known | None:
    names = [cls.__name__ for cls in type(optimizer).__mro__]
    return next((known for part, known in KNOWN.items() if any(part in name for name in names)), None)
