from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch.optim import Optimizer

_TOLD = {"momentum", "betas", "beta", "alpha", "rho", "eps", "weight_decay", "dampening"}
"""Settings that people set. Optimizers keep numbers of their own in their groups as well, and count in them."""
_MUCH = 1.5
"""Times as large a setting must be to be told of; schedules move some of them a little at every step."""


class Changed(NamedTuple):
    """A setting of a parameter group that is another by now."""

    group: int
    name: str
    before: float
    now: float

    @property
    def message(self) -> str:
        """All this in a sentence."""
        return f"{self.name} of parameter group {self.group} was changed from {self.before:g} to {self.now:g}"


class Hyperparameters:
    """The settings of an optimizer other than its learning rate, which a run may change on its way.

    Args:
        optimizer: Whose.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> settings = Hyperparameters(optimizer)
        >>> optimizer.param_groups[0].update(lr=1.0, momentum=0.99)
        >>> [changed.message for changed in settings.changed()], settings.changed()
        (['momentum of parameter group 0 was changed from 0.9 to 0.99'], [])
    """

    def __init__(self, optimizer: Optimizer):
        self._optimizer = optimizer
        self._known = dict(self._now())

    def changed(self) -> list[Changed]:
        """What is much larger or smaller than when it was told of last."""
        found = []
        for (group, name), value in self._now():
            before = self._known.setdefault((group, name), value)
            if _differs(before, value):
                self._known[group, name] = value
                found.append(Changed(group, name, before, value))
        return found

    def _now(self) -> Iterator[tuple[tuple[int, str], float]]:
        for i, group in enumerate(self._optimizer.param_groups):
            for name, value in group.items():
                if name in _TOLD:
                    yield from (((i, key), number) for key, number in _numbers(name, value))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)
    elif isinstance(value, (tuple, list)) and all(isinstance(item, float) for item in value):
        names = ("beta1", "beta2", "beta3") if name == "betas" else (f"{name}1", f"{name}2")
        yield from zip(names, value, strict=False)


def _differs(before: float, now: float) -> bool:
    if before == now or math.isnan(now):
        return False
    # What is forgotten of a moment at each step counts, not what is kept.
    return _by_far(before, now) or (0 < before < 1 and 0 < now < 1 and _by_far(1 - before, 1 - now))


def _by_far(before: float, now: float) -> bool:
    return not (before * now > 0 and 1 / _MUCH < now / before < _MUCH)
