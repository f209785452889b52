from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.probe import Explanation
from stepguard.records import Culprit

_TIMES = 2.0
"""How many times as large as any that was explained r must be to be explained in any case."""
_APART = 100
"""Steps without a breach after which the next one begins something new."""
_KEPT = 20
"""Parameters that are named."""


class Culprits:
    """Which breaches are worth explaining, and what an explanation says in names.

    An explanation costs about two plain steps, so a run at its limit must not have one at each. Of breaches in a row
    the 1st, 2nd, 4th, 8th... has one, and any that is twice as bad as all those that had.

    Args:
        model: What is trained.
        optimizer: By which.
        rank: Of this process, where several train.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, rank: int | None):
        self._model, self._optimizer, self._rank = model, optimizer, rank
        self._breaches, self._largest, self._last = 0, 0.0, -_APART

    def wants(self, step: int, r: float) -> bool:
        """Whether to explain this breach; to be asked of each."""
        if step - self._last > _APART:
            self._breaches, self._largest = 0, 0.0
        self._breaches, self._last = self._breaches + 1, step
        wanted = math.isfinite(r) and (self._breaches.bit_count() == 1 or r >= _TIMES * self._largest)
        if wanted:
            self._largest = max(self._largest, r)
        return wanted

    def named(self, step: int, explanation: Explanation) -> Culprit:
        """What an explanation says, in names."""
        sample = explanation.sample
        named = self._model.named_parameters()
        names: dict[Tensor, str] = {p: name.replace("_orig_mod.", "") for name, p in named}  # that is torch.compile's
        parts = {names[p]: part for p, part in explanation.parts}
        parameters = _largest_first(parts)
        kept = dict(list(parameters.items())[:_KEPT])
        group_of: dict[Tensor, str] = {p: name for name, group in self._groups() for p in group["params"]}
        groups = dict.fromkeys(group_of.values(), 0.0)
        layers: dict[str, float] = {}
        for p, part in explanation.parts:
            groups[group_of[p]] += part
            layer = layer_of(names[p])
            layers[layer] = layers.get(layer, 0.0) + part
        flat = 0
        for i, size in zip(sample.position, sample.shape, strict=True):
            flat = flat * size + i
        return Culprit(
            step=step,
            r=sample.spread / math.pi,
            spread=sample.spread,
            sample=flat,
            position=list(sample.position),
            softmax=explanation.softmax,
            rising=sample.rising,
            falling=sample.falling,
            label=sample.label,
            batch=explanation.batch,
            batches=explanation.batches,
            rank=self._rank,
            parameters=kept,
            others=math.fsum(list(parameters.values())[_KEPT:]),
            groups=groups,
            layers=_largest_first(layers),
            remainder=sample.spread - math.fsum(parts.values()),
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to explain the same steps."""
        return {"breaches": self._breaches, "largest": self._largest, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run has counted."""
        self._breaches, self._largest, self._last = state["breaches"], state["largest"], state["last"]

    def _groups(self) -> list[tuple[str, dict[str, Any]]]:
        """Those of the optimizer, by the name that a user gave each or by its index."""
        groups = self._optimizer.param_groups
        given = [group.get("name") for group in groups]
        distinct = len(set(map(str, given))) == len(given)
        return [
            (str(name if name and distinct else i), g) for i, (name, g) in enumerate(zip(given, groups, strict=True))
        ]


def layer_of(parameter: str) -> str:
    """The layer of a parameter, by its name: up to the first number, or else the module that holds it.

    Example:
        >>> [layer_of(name) for name in ("transformer.h.3.attn.c_attn.weight", "head.weight", "scale")]
        ['transformer.h.3', 'head', 'scale']
    """
    parts = parameter.split(".")
    numbers = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1] or parts)


def _largest_first(parts: dict[str, float]) -> dict[str, float]:
    return dict(sorted(parts.items(), key=lambda item: -abs(item[1])))
