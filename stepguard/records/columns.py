from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, get_type_hints, overload

_CODES = {float: "d", int: "q", float | None: "d", int | None: "q"}


class Numbers(Sequence[Any]):
    """A list of numbers, or None, in eight bytes each where a list of Python's takes thirty-two.

    Args:
        code: Of an :class:`array.array`: ``"d"`` for floats, ``"q"`` for whole numbers.
        values: What to begin with; floats also as ``"inf"``, ``"-inf"`` and ``"nan"``, as JSON has them.

    Raises:
        TypeError, ValueError, OverflowError: If one is no such number.

    Example:
        >>> numbers = Numbers("d", [1.5, None, "inf"])
        >>> numbers, numbers[0], numbers.floats(1)
        ([1.5, None, inf], 1.5, array('d', [nan, inf]))
    """

    def __init__(self, code: str, values: Sequence[Any] = ()):
        self._none = bytearray()  # where there is None, one byte a number; empty as long as there is none
        try:
            self._values = array(code, values)
        except TypeError:  # few columns have None, and few blocks another number that JSON does not have
            nothing = math.nan if code == "d" else 0
            if values.count(None) == len(values):  # as of a run that has no such thing
                self._values = array(code, [nothing]) * len(values)
                self._none = bytearray(b"\1") * len(values)
            else:
                number = float if code == "d" else int.__index__
                self._values = array(code, [nothing if value is None else number(value) for value in values])
                self._none = bytearray([value is None for value in values])

    def extend(self, more: Numbers) -> None:
        """Add many."""
        if self._none or more._none:
            for which in (self, more):
                which._none.extend(bytes(len(which) - len(which._none)))
            self._none += more._none
        self._values += more._values

    def cut(self, keep: int) -> None:
        """Leave out all but the first ``keep``."""
        del self._values[keep:], self._none[keep:]

    def floats(self, first: int = 0) -> array[float]:
        """Those from an index on, for numpy and its like; nan for None."""
        values = self._values[first:]
        if values.typecode == "d":
            return values
        return array("d", [math.nan if value is None else value for value in self[first:]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        # Always a copy: a view of what is here would keep it from growing.
        return np.array(self._values if not self._none else self.floats(), dtype=dtype)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            values = self._values[index].tolist()
            return _with_none(values, self._none[index]) if self._none else values
        return None if self._none and self._none[index] else self._values[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(_with_none(self._values, self._none) if self._none else self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))


class Others(list[Any]):
    """A list of anything else."""

    def cut(self, keep: int) -> None:
        """Leave out all but the first ``keep``."""
        del self[keep:]


Column = Numbers | Others


def makers(kind: Any) -> dict[str, Callable[[Sequence[Any]], Column]]:
    """For each field of a NamedTuple what makes a column of values."""
    hints = get_type_hints(kind)
    made: dict[Any, Callable[[Sequence[Any]], Column]] = {str: _words, bool: Others}
    made.update({hint: partial(Numbers, code) for hint, code in _CODES.items()})
    return {name: made.get(hints[name], _several) for name in kind._fields}


def _words(values: Sequence[str]) -> Others:
    return Others(map(sys.intern, values))  # a million times "forward" is one


def _several(values: Sequence[Any]) -> Others:
    """Lists and dicts of numbers."""
    return Others([_numbers(value) if value else value for value in values])


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: float(number) for key, number in value.items()}
    return [None if number is None else float(number) for number in value]


def _with_none(values: Iterable[Any], none: Iterable[int]) -> list[Any]:
    return [None if missing else value for value, missing in zip(values, none, strict=True)]
