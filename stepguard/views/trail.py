from __future__ import annotations

import math


class Trail:
    """A quantity over the steps of a run, in bounded room however long that is: the largest of each few steps.

    Args:
        most: How many values to keep at most; when there are more, neighbours become one, their larger.

    Example:
        >>> trail = Trail(most=4)
        >>> for step, value in enumerate([1, 2, 9, 2, 1, 3, 1, 1]):
        ...     trail.add(step, value)
        >>> trail.over(4)
        [2, 9, 3, 1]
    """

    def __init__(self, most: int = 1024):
        self.first = self.last = 0
        self._most, self._width = most, 1
        self._largest: dict[int, float] = {}

    def add(self, step: int, value: float) -> None:
        """Take the value at a step; steps do not go back."""
        if not self._largest:
            self.first = step
        self.last = step
        # Not a number is drawn as inf: nothing is more dangerous, and max() would lose it.
        value = math.inf if math.isnan(value) else value
        place = (step - self.first) // self._width
        self._largest[place] = max(value, self._largest.get(place, value))
        while place >= self._most:
            self._width, halves = 2 * self._width, self._largest
            self._largest, place = {}, place // 2
            for old, found in halves.items():
                self._largest[old // 2] = max(found, self._largest.get(old // 2, found))

    def copy(self) -> Trail:
        """As it is now, for a picture that another thread may draw while this goes on."""
        copied = Trail(self._most)
        vars(copied).update(vars(self), _largest=self._largest.copy())
        return copied

    def over(self, columns: int) -> list[float | None]:
        """The largest value in each of so many equal parts of the run; None where there was none."""
        # A part for each step at most, so that a young run is not spread thin.
        parts: list[float | None] = [None] * min(columns, self.last - self.first + 1)
        steps = self.last - self.first + 1
        for place, value in self._largest.items():
            part = min(place * self._width * len(parts) // steps, len(parts) - 1)
            before = parts[part]
            parts[part] = value if before is None else max(before, value)
        return parts
