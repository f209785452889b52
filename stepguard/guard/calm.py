from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

_KEPT = 100
"""Steps that tell what is usual."""
_LEAST = 30
"""As many must have been made before anything is usual: a warm-up grows by less than twofold in ten steps then."""
_FAMILIAR = 10, 2.0
"""A learning rate is familiar where so many steps asked for it, or for no less than it divided by that."""
_LONG = 2.0
"""Times the usual from which on a step is longer than usual."""
_PATIENCE = 20
"""Held steps in a row after which a length may grow: what lasts is not an accident."""
_GROWTH = 1.05


class Asked(NamedTuple):
    """A step as the optimizer made it."""

    tau: float
    """Its length."""
    rates: Sequence[float]
    """The learning rate of each parameter group."""
    moving: int
    """How many tensors it moved."""
    before: tuple[float, float] | None = None
    """Learning rate and length of the step before it."""


class Calm:
    """What a run usually asks for, and so how long a step would be if nothing had happened.

    Where a learning rate has risen to where it never was, the usual one is what is missing, and with it the step is
    the very one that would have been made. Where the step is longer than usual for its learning rate, the usual length
    is. A step that is neither is as any other, whether or not it is beyond its target.

    Attributes:
        held: How many steps in a row, up to now, were not as usual; halved by each that was.

    Example:
        >>> calm = Calm()
        >>> for _ in range(30):
        ...     scale = calm.scale(0.3, 1.0, Asked(tau=0.2, rates=[1e-3], moving=4))
        >>> round(calm.scale(250.0, 1.0, Asked(tau=180.0, rates=[1.0], moving=4)), 6)  # a rate of x1,000
        0.001
        >>> round(calm.scale(5.0, 1.0, Asked(tau=10.0, rates=[1e-3], moving=4)), 6)  # a gradient of x50
        0.02
        >>> round(calm.scale(5.0, 1.0, Asked(tau=0.2, rates=[1e-3], moving=4)), 6)  # another kind of batch
        0.2
    """

    def __init__(self) -> None:
        self._lengths: deque[float] = deque(maxlen=_KEPT)
        self._rates: deque[list[float]] = deque(maxlen=_KEPT)
        self._highest: list[list[float]] = []
        self._moving = 0
        self.held = 0

    def scale(self, r: float, target: float, step: Asked) -> float:
        """The factor for a step, at most target / r; 1 for one that is within its target.

        Args:
            r: Its normalized step ratio; 0 for one that is known to be small.
            target: The limit on that.
            step: What was asked for.
        """
        limit = target / r if r > target else 1.0
        if step.moving > self._moving or len(step.rates) != len(self._highest):
            self._begin(step)  # thawed or added parameters: something else is usual now
        back = 1.0
        if r > target and len(self._lengths) >= _LEAST:
            back = self._back_to_usual(limit, step)
        if back == 1:
            self.held //= 2
            self._add(step)
        else:
            self.held += 1
        return min(limit, back)

    def _back_to_usual(self, limit: float, step: Asked) -> float:
        """The factor that makes it a usual step; 1 if it is one."""
        usual = [median(of) for of in zip(*self._rates, strict=True)]
        each = zip(usual, step.rates, self._highest, strict=True)
        back = min((was / now for was, now, high in each if _is_new(now, high)), default=1.0)
        if back < 1 and back <= limit:
            return back
        longer = _length(step) / median(self._lengths)
        if longer <= _LONG:
            return back
        grown = _GROWTH ** max(self.held - _PATIENCE, 0) / longer
        if grown >= 1:  # it is what is usual now
            self._begin(step)
        return min(back, grown)

    def _begin(self, step: Asked) -> None:
        self._lengths.clear()
        self._rates.clear()
        self._moving, self._highest = step.moving, [[] for _ in step.rates]

    def _add(self, step: Asked) -> None:
        self._lengths.append(_length(step))
        self._rates.append(list(step.rates))
        for highest, rate in zip(self._highest, step.rates, strict=True):
            if len(highest) < _FAMILIAR[0]:
                heapq.heappush(highest, rate)
            elif rate > highest[0]:
                heapq.heapreplace(highest, rate)

    @property
    def says_so(self) -> bool:
        """Whether it is time to say for how long steps have been held: after 50 in a row, 100, 200..."""
        times = self.held / 50
        return self.held >= 50 and times == int(times) and int(times).bit_count() == 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to hold the same steps at the same length."""
        return {
            "lengths": list(self._lengths),
            "rates": list(self._rates),
            "highest": [list(highest) for highest in self._highest],
            "moving": self._moving,
            "held": self.held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier one had found usual."""
        self._lengths = deque(state["lengths"], maxlen=_KEPT)
        self._rates = deque(state["rates"], maxlen=_KEPT)
        self._highest = [list(highest) for highest in state["highest"]]
        self._moving, self.held = state["moving"], state["held"]


def _length(step: Asked) -> float:
    """Of a step at a learning rate of 1."""
    return step.tau / (max(step.rates, default=0.0) or 1.0)


def _is_new(rate: float, highest: list[float]) -> bool:
    return highest[0] > 0 and _FAMILIAR[1] * highest[0] < rate < math.inf
