from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

_MOST = 4096


class Budget:
    """How often something can be read so that it costs no more than its share of the time that training takes.

    Steps between readings are a power of two: doubled as soon as needed, halved only where four times as many
    readings would do, so that it stays the same for long.

    Args:
        allowed: That share.
        first: Steps between readings to begin with.
        fixed: Steps between readings, whatever they cost; None keeps to the budget.

    Example:
        >>> budget = Budget(0.02, 32)
        >>> for _ in range(3):
        ...     budget.plain_step(0.010)
        ...     budget.reading(0.005)  # half a step: every 25th would do
        >>> budget.every
        32
    """

    def __init__(self, allowed: float, first: int, fixed: int | None = None):
        self.every = fixed or first
        self._allowed, self._fixed = allowed, fixed is not None
        self._steps: deque[float] = deque(maxlen=32)
        self._readings: deque[float] = deque(maxlen=5)

    def plain_step(self, seconds: float) -> None:
        """A step passed without a reading, in this time."""
        self._steps.append(seconds)

    def reading(self, seconds: float) -> None:
        """A reading took this time beside its step."""
        self._readings.append(seconds)
        # The first reading of a process loads and warms up what later ones find ready.
        if self._fixed or len(self._readings) < 2 or not self._steps:
            return
        wanted = median(self._readings) / (self._allowed * median(self._steps))
        while self.every < min(wanted, _MOST):
            self.every *= 2
        while self.every > 1 and self.every >= 4 * wanted:
            self.every //= 2

    @property
    def share(self) -> float | None:
        """What readings take of the time; None as long as that is not known."""
        if not (self._readings and self._steps):
            return None
        reading = median(self._readings)
        return reading / (self.every * median(self._steps) + reading)

    @property
    def beside(self) -> float:
        """A reading's time as a share of a step's; infinite as long as that is not known."""
        known = self._readings and self._steps
        return median(self._readings) / median(self._steps) if known else math.inf

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to read at the same steps."""
        return {"every": self.every, "steps": list(self._steps), "readings": list(self._readings)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier one had found out."""
        if not self._fixed:
            self.every = state["every"]
        self._steps.extend(state["steps"])
        self._readings.extend(state["readings"])
