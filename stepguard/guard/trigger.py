from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from stepguard.guard.budget import Budget

Why = Literal["first", "near", "old"]
_FIRST = 10
"""Steps at the beginning that are all measured."""
_HOT = 20
"""Steps that are measured after one that was near the limit."""
_KEPT = 5
"""Readings by which the next r is predicted: by the worst of them."""
_NEAR = 0.25, 0.45
"""Share of the target from which on a prediction is near the limit: when nothing is known, and at best."""
_CARE = 2.0
"""How many times as wrong as they have been at worst, in logarithms, predictions may be."""
_DOUBLING = 15
"""Steps within which kappa is taken to double, if it has not been seen to grow faster."""
_CALM = 64
"""Steps from one reading to the next where r is far from its limit, before the budget has its say."""
_MOST_GROWN = 700.0
"""As much as a number of that kind can hold."""
_SURPRISE = 2.0
"""By how much an update may be longer than expected before it comes unwatched."""
_PART = 0.01
"""Share of the update's norm below which a parameter group is not looked at by itself."""


class _Known(NamedTuple):
    step: int
    kappa: float
    """r over the norm of the update."""
    by_group: list[float]
    """r over the norm of each parameter group's part."""


class Trigger:
    """When to measure: when the step to be made may be near the limit, and now and then, to know what near is.

    r is linear in the update, and kappa = r / ||u|| changes slowly, so the norm of an update says what its r will
    about be. A step is measured when that prediction is near the limit, for some steps after that, and when the
    last reading is so old that kappa could have grown up to there meanwhile. How near is near is learned from how
    wrong predictions were; how old is old, from how fast kappa was seen to grow.

    Parameter groups are also looked at one by one: a learning rate that jumps for one of them alone need not show in
    the norm of the whole.

    Args:
        target: The limit on r.
        budget: Share of the time that training takes which readings may cost while nothing is near the limit.

    Example:
        >>> trigger = Trigger(target=1.0, budget=0.03)
        >>> measured = []
        >>> for step in range(100):
        ...     norm = 50.0 if step == 77 else 1.0
        ...     if trigger.due(step, [norm]):
        ...         measured.append(step)
        ...         trigger.reading(step, r=0.03 * norm, norms=[norm])
        >>> measured[10:]
        [68, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97]
    """

    def __init__(self, target: float, budget: float):
        self._target = target
        self._known: deque[_Known] = deque(maxlen=_KEPT)
        self._wrong: deque[float] = deque(maxlen=60)
        self._until = _FIRST
        self.budget = Budget(budget, _CALM)
        self._kappa, self._near, self._growth = 0.0, _NEAR[0], math.inf
        self._by_group: list[float] = []

    def worth_watching(self, step: int, norms: Sequence[float]) -> bool:
        """Whether a step that is still to be made may have to be measured.

        Args:
            step: Its number.
            norms: What is to be expected of each parameter group's part of its update.
        """
        return self.due(step, [_SURPRISE * norm for norm in norms]) is not None

    def due(self, step: int, norms: Sequence[float]) -> Why | None:
        """Why the step must be measured, if so.

        Args:
            step: Its number.
            norms: Euclidean norm of each parameter group's part of its update.
        """
        if not self._known or step < self._until:
            return "near" if step >= _FIRST and self._known else "first"
        predicted = self._predicted(norms)
        if not predicted <= self._near or self._is_new(norms):  # nan is near
            return "near"
        age = step - self._known[-1].step
        if age >= self.budget.every:
            return "old"
        could_be = predicted * math.exp(min(self._growth * age, _MOST_GROWN))
        return "old" if could_be >= self._near else None

    def unseen(self, step: int, norms: Sequence[float]) -> tuple[float, float]:
        """The prediction for a step that is near the limit but was not watched, and the factor that makes it harmless.

        As harmless as those steps are that are not measured.
        """
        self._until = step + 1 + _HOT
        predicted = self._predicted(norms)
        return predicted * self._target, min(self._near / predicted, 1.0) if predicted > 0 else 1.0

    def reading(self, step: int, r: float, norms: Sequence[float]) -> None:
        """Learn from what was measured."""
        r, norm = r / self._target, math.hypot(*norms)
        if not (math.isfinite(r) and 0 < norm < math.inf):
            self._until = step + 1 + _HOT
            return
        if self._known and r > 0 and (predicted := self._predicted(norms)) > 0:
            self._wrong.append(math.log(r / predicted))
        self._known.append(_Known(step, r / norm, [r / n if n > 0 else 0.0 for n in norms]))
        self._learn()
        if r > self._near:
            self._until = step + 1 + _HOT

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to measure at the same steps."""
        return {
            "known": [tuple(known) for known in self._known],
            "wrong": list(self._wrong),
            "until": self._until,
            "budget": self.budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier one had learned."""
        self._known = deque((_Known(*known) for known in state["known"]), maxlen=_KEPT)
        self._wrong = deque(state["wrong"], maxlen=self._wrong.maxlen)
        self._until = state["until"]
        self._learn()
        self.budget.load_state_dict(state["budget"])

    def _learn(self) -> None:
        """What follows from the readings, once and not at every step."""
        if not self._known:
            return
        groups = [known.by_group for known in self._known if len(known.by_group) == len(self._known[-1].by_group)]
        self._kappa = max(known.kappa for known in self._known)
        self._by_group = [max(kappas) for kappas in zip(*groups, strict=True)]
        if len(self._wrong) >= _FIRST - 1:
            self._near = min(max(math.exp(-_CARE * max(self._wrong) - 0.2), _NEAR[0]), _NEAR[1])
        grown = [
            math.log(late.kappa / early.kappa) / (late.step - early.step)
            for early, late in itertools.pairwise(self._known)
            if late.step - early.step >= _KEPT - 1 and early.kappa > 0 and late.kappa > 0
        ]
        self._growth = max(math.log(2) / _DOUBLING, *grown, 0.0)

    def _predicted(self, norms: Sequence[float]) -> float:
        """The r of an update, as a share of the target."""
        norm = math.hypot(*norms)
        found = self._kappa * norm
        if len(norms) > 1 and len(norms) == len(self._by_group):
            least = _PART * norm
            for kappa, part in zip(self._by_group, norms, strict=True):
                if part >= least and kappa * part > found:
                    found = kappa * part
        return found

    def _is_new(self, norms: Sequence[float]) -> bool:
        """Whether something moves that has not moved before."""
        if len(norms) != len(self._by_group):
            return True
        return (
            0.0 in self._by_group
            and any(kappa == 0 < part for kappa, part in zip(self._by_group, norms, strict=True))
            and self._kappa > 0
        )
