from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, Generic, TypeVar

N = TypeVar("N", int, float)


class ByStep(Mapping[int, N], Generic[N]):
    """A dict from steps to numbers, in sixteen bytes each where they come in order, as they nearly always do.

    Args:
        code: Of an :class:`array.array`: ``"d"`` for floats, ``"q"`` for whole numbers.

    Example:
        >>> times = ByStep("d")
        >>> times.extend([3, 4, 4, 9], [0.5, 1.0, 1.5, 2.0])
        >>> times[4], 5 in times, dict(times)
        (1.5, False, {3: 0.5, 4: 1.5, 9: 2.0})
    """

    def __init__(self, code: str):
        self._steps: array[int] = array("q")
        self._values: array[Any] = array(code)
        self._late: dict[int, N] = {}  # that came after a later step, as where two writers count for themselves

    def extend(self, steps: Iterable[int], values: Iterable[N]) -> None:
        """Add many; of a step that comes twice the later value counts."""
        new = dict(zip(steps, values, strict=True))
        if self._steps and self._steps[-1] in new:  # of a step there may be several records
            self._values[-1] = new.pop(self._steps[-1])
        keys = list(new)
        if not keys or (keys == sorted(keys) and (not self._steps or keys[0] > self._steps[-1])):
            self._steps.extend(keys)
            self._values.extend(new.values())
        else:
            self.update(new)

    def update(self, other: Mapping[int, N]) -> None:
        """As a dict's."""
        for step, value in other.items():
            self._set(step, value)

    def cut(self, step: int, stays: Set[int]) -> None:
        """Leave out what is from a step on, but for the steps that stay."""
        keep: int = bisect_left(self._steps, step)
        left = {one: self[one] for one in (*self._steps[keep:], *self._late) if one < step or one in stays}
        del self._steps[keep:], self._values[keep:]
        self._late = {}
        for one in sorted(left):
            self._set(one, left[one])

    def __getitem__(self, step: int) -> N:
        if step in self._late:
            return self._late[step]
        index = self._index(step)
        if index is None:
            raise KeyError(step)
        value: N = self._values[index]
        return value

    def __len__(self) -> int:
        return len(self._steps) + len(self._late)

    def __iter__(self) -> Iterator[int]:
        yield from sorted((*self._steps, *self._late)) if self._late else self._steps

    def _index(self, step: int) -> int | None:
        index = bisect_left(self._steps, step)
        return index if index < len(self._steps) and self._steps[index] == step else None

    def _set(self, step: int, value: N) -> None:
        index = self._index(step)
        if index is not None:
            self._values[index] = value
        elif self._steps and step < self._steps[-1]:
            self._late[step] = value
        else:
            self._steps.append(step)
            self._values.append(value)
