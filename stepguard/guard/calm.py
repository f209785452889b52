from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

_KEPT = 100
"""Steps that tell what is usual."""
_LEAST = 10
"""As many must have been made before anything is usual."""
_FAMILIAR = 20, 1.5
"""A learning rate is familiar where so many steps were made at it, or at no less than it divided by that."""
_PATIENCE = 20
"""Held steps in a row after which their length may grow: what lasts is not an accident."""
_GROWTH = 1.05


class Asked(NamedTuple):
    """A step as the optimizer made it."""

    tau: float
    """Its length."""
    rates: Sequence[float]
    """The learning rate of each parameter group."""
    moving: int
    """How many tensors it moved."""


class Calm:
    """What is usual in a run, and so how long a step would be if nothing had happened.

    Goes by the steps that were made as the optimizer asked. Where a learning rate has risen to where it never was, the
    usual one is what is missing, and with it the step is the very one that would have been made. Where that does not
    explain it, the usual length is.

    Attributes:
        held: How many steps in a row, up to now, were made shorter.

    Example:
        >>> calm = Calm()
        >>> for _ in range(30):
        ...     calm.made(Asked(tau=0.2, rates=[1e-3], moving=4))
        >>> round(calm.scale(250.0, 1.0, Asked(tau=180.0, rates=[1.0], moving=4)), 6)  # a rate of x1,000
        0.001
        >>> round(calm.scale(5.0, 1.0, Asked(tau=10.0, rates=[1e-3], moving=4)), 6)  # a gradient of x50
        0.02
    """

    def __init__(self) -> None:
        self._taus: deque[float] = deque(maxlen=_KEPT)
        self._rates: deque[list[float]] = deque(maxlen=_KEPT)
        self._highest: list[list[float]] = []
        self._moving = 0
        self.held = 0

    def made(self, step: Asked) -> None:
        """A step was made as it was asked for."""
        self.held = 0
        if self._is_other(step):  # thawed or added parameters: another length is usual now
            self._taus.clear()
            self._rates.clear()
            self._moving = step.moving
            self._highest = [[] for _ in step.rates]
        self._taus.append(step.tau)
        self._rates.append(list(step.rates))
        for highest, rate in zip(self._highest, step.rates, strict=True):
            if len(highest) < _FAMILIAR[0]:
                heapq.heappush(highest, rate)
            elif rate > highest[0]:
                heapq.heapreplace(highest, rate)

    def scale(self, r: float, target: float, step: Asked) -> float:
        """The factor, at most target / r, for a step whose r is beyond the target; it counts as held."""
        self.held += 1
        limit = target / r
        if len(self._taus) < _LEAST or self._is_other(step):
            return limit
        usual = [median(of) for of in zip(*self._rates, strict=True)]
        back = min(
            (was / now for was, now, high in zip(usual, step.rates, self._highest, strict=True) if _is_new(now, high)),
            default=1.0,
        )
        if back <= limit:
            return back
        longest = median(self._taus) * _GROWTH ** max(self.held - _PATIENCE, 0)
        return min(limit, back, longest / step.tau)

    @property
    def says_so(self) -> bool:
        """Whether it is time to say for how long steps have been held: after 50 in a row, 100, 200..."""
        times = self.held / 50
        return self.held >= 50 and times == int(times) and int(times).bit_count() == 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to hold the same steps at the same length."""
        return {
            "taus": list(self._taus),
            "rates": list(self._rates),
            "highest": self._highest,
            "moving": self._moving,
            "held": self.held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier one had found usual."""
        self._taus = deque(state["taus"], maxlen=_KEPT)
        self._rates = deque(state["rates"], maxlen=_KEPT)
        self._highest, self._moving, self.held = state["highest"], state["moving"], state["held"]

    def _is_other(self, step: Asked) -> bool:
        return step.moving > self._moving or len(step.rates) != len(self._highest)


def _is_new(rate: float, highest: list[float]) -> bool:
    return highest[0] > 0 and _FAMILIAR[1] * highest[0] < rate < math.inf
