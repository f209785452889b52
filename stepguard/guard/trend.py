from __future__ import annotations

import itertools
from collections import deque
from statistics import median

_KEPT = 16
_LEAST = 5


class Trend:
    """Where a number that is read now and then is going, by the median of the slopes between its last readings.

    The median (Theil and Sen) rather than least squares: one odd batch must not make a forecast.

    Example:
        >>> trend = Trend()
        >>> for step in range(0, 60, 10):
        ...     trend.add(step, 8.0 - 0.1 * step)
        >>> round(trend.slope, 6), round(trend.crosses_zero_at)
        (-0.1, 80)
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def add(self, step: int, value: float) -> None:
        """Take a reading."""
        self._readings.append((step, value))

    @property
    def slope(self) -> float | None:
        """Change per step; None before there are five readings."""
        if len(self._readings) < _LEAST:
            return None
        pairs = itertools.combinations(self._readings, 2)
        return median((late - early) / (after - before) for (before, early), (after, late) in pairs)

    def line(self, level: float = 0.5) -> tuple[float, float] | None:
        """Change per step, and where the line is at the last reading; None before there are five.

        Args:
            level: Share of the readings that the line is above; with a half it runs through their middle.
        """
        slope = self.slope
        if slope is None:
            return None
        # A median too: of the readings, each carried on to the last one's step.
        now = self._readings[-1][0]
        return slope, _quantile([value + slope * (now - step) for step, value in self._readings], level)

    @property
    def crosses_zero_at(self) -> float | None:
        """Step at which the value comes to 0 from above, if it is falling."""
        line = self.line()
        if line is None or not line[0] < 0:
            return None
        slope, height = line
        return self._readings[-1][0] + max(height, 0.0) / -slope

    @property
    def span(self) -> int:
        """Steps from the first to the last of the readings that it goes by."""
        return self._readings[-1][0] - self._readings[0][0] if self._readings else 0

    def state_dict(self) -> list[tuple[int, float]]:
        """The readings that it goes by."""
        return list(self._readings)

    def load_state_dict(self, state: list[tuple[int, float]]) -> None:
        """Take up those of an earlier one."""
        self._readings = deque(((step, value) for step, value in state), maxlen=_KEPT)


def _quantile(values: list[float], level: float) -> float:
    """Interpolated, as the median is of an even number."""
    values.sort()
    place = level * (len(values) - 1)
    low = int(place)
    return values[low] + (place - low) * (values[min(low + 1, len(values) - 1)] - values[low])
