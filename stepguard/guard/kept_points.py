from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepguard.guard.known_optimizers import Known, known_parts
from stepguard.guard.movement import Movement
from stepguard.probe import part_here

_WEIGHTS = "lr_max", "weight_sum"


class KeptPoints:
    """What an optimizer keeps that belongs to where the parameters are, and goes with them when a step is rescaled.

    A schedule-free optimizer also moves a point of its own, and D-Adaptation sums up its steps. If only the parameters
    were put back, the next step would start from a point that was never reached, and ask for all that was taken away.
    So what is kept makes the same share of the step: it lands at old + s * (new - old). Where it grows in proportion to
    the learning rate, that is what a step at s times the rate would have left.

    Most optimizers keep averages of gradients only, which are the same wherever the step ends: nothing is done then.

    Args:
        optimizer: The one that is guarded.
    """

    def __init__(self, optimizer: Optimizer):
        self._parts = list(known_parts(optimizer))
        self._tensors: dict[tuple[Tensor, str], Tensor] = {}
        self._numbers: list[dict[str, Any]] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Keep all that as it is before the step."""
        self._tensors = {(p, key): value.clone() for p, key, value, _ in self._kept()}
        self._numbers = [
            {key: _copy(group[key]) for key in (*known.numbers, *_WEIGHTS) if key in group}
            for _, known, group in self._groups()
        ]

    @torch.no_grad()
    def rescale(self, scale: float, movement: Movement) -> None:
        """Let it have made ``scale`` times what it made in this step, as the parameters have."""
        before = {id(p): old for p, old in zip(movement.params, movement.old, strict=True)} if self._parts else {}
        for p, key, value, is_point in self._kept():
            old = self._tensors.get((p, key))
            if old is None:  # made in this step
                old = before[id(p)] if is_point else torch.zeros_like(value)
            value.copy_(_between(old, value, scale))
        done: set[int] = set()
        for (part, known, group), numbers in zip(self._groups(), self._numbers, strict=True):
            for key in known.numbers:
                if id(group.get(key)) not in done:  # perhaps one tensor for all groups
                    done.add(_rescale_number(group, key, numbers.get(key, 0.0), scale))
            if known.weighs and "weight_sum" in group:
                power = group.get("weight_lr_power", getattr(part, "weight_lr_power", 2.0))
                _weigh_again(group, numbers, scale, power)
        for part, known in self._parts:
            for state in part.state.values():
                for key in known.restarts:
                    if isinstance(state, dict) and key in state:
                        state[key] = 0

    def _groups(self) -> Iterator[tuple[Optimizer, Known, dict[str, Any]]]:
        for part, known in self._parts:
            for group in part.param_groups:
                yield part, known, group

    def _kept(self) -> Iterator[tuple[Tensor, str, Tensor, bool]]:
        for part, known, group in self._groups():
            for p in group["params"]:
                state = part.state.get(p, {})
                for key in (*known.points, *known.sums):
                    value = state.get(key)
                    if isinstance(value, Tensor) and value.is_floating_point():
                        yield p, key, part_here(value), key in known.points


def _rescale_number(group: dict[str, Any], key: str, old: Any, scale: float) -> int:
    """Of a group; returns which it was, if it is a tensor."""
    new = group.get(key)
    if isinstance(new, Tensor):
        new.copy_(_between(old, new, scale))
        return id(new)
    if new is not None:
        group[key] = _between(old, new, scale)
    return 0


def _weigh_again(group: dict[str, Any], before: dict[str, Any], scale: float, power: float) -> None:
    """Give the step the weight that it has at ``scale`` times its rate.

    A line between before and after would not do: weights go with a power of the rate, and one step at a thousand
    times the usual would weigh as much as all others together for good.
    """
    highest, total = before.get("lr_max", 0.0), before.get("weight_sum", 0.0)
    new = group["lr_max"]
    own = max(highest, scale * new) if new > highest else new
    weight = (group["weight_sum"] - total) * (own / new) ** power if scale and new else 0.0
    group["lr_max"], group["weight_sum"] = own if scale else highest, total + weight


def _between(old: Any, new: Any, scale: float) -> Any:
    return old + scale * (new - old) if scale != 0 else old  # 0 * inf and 0 * nan would not be 0


def _copy(number: Any) -> Any:
    return number.clone() if isinstance(number, Tensor) else number
