from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

R = TypeVar("R")

NUMBERS = ("inf", "-inf", "nan")
"""Numbers that JSON does not have, as it has them."""


class Rows(Sequence[R], Generic[R]):
    """A list of readings that keeps columns, and makes a reading only of what is asked for.

    A million readings are there in half of the time and memory that a list of them would take, and a whole column
    is at hand.

    Args:
        kind: What a row is: a NamedTuple whose first field is the step.
        rows: What to begin with.

    Attributes:
        columns: A list of values for each field.

    Example:
        >>> from stepguard.records import Reading
        >>> rows = Rows(Reading)
        >>> rows.append(
        ...     Reading(3, r=2.0, tau=4.0, rho=2.0, spread=6.28, scale=0.5, lr=0.1, lr_applied=0.05, target=1.0)
        ... )
        >>> rows[-1].breach, rows.columns["r"]
        (True, [2.0])
    """

    def __init__(self, kind: type[R], rows: Iterable[R] = ()):
        self._kind = cast(Any, kind)  # no type tells that it is a NamedTuple
        self.columns: dict[str, list[Any]] = {name: [] for name in self._kind._fields}
        for row in rows:
            self.append(row)

    def append(self, row: R) -> None:
        """Add one."""
        self.extend({name: [getattr(row, name)] for name in self.columns})

    def extend(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add many, as :meth:`taken` gives them."""
        for name, column in self.columns.items():
            column.extend(columns[name])

    def taken(self, values: Sequence[Mapping[str, Any]], odd: bool = True) -> dict[str, list[Any]]:
        """The columns of what JSON had; ``odd`` if there may be numbers among them that JSON does not have.

        Raises:
            KeyError: If one lacks a field that every reading has.
        """
        defaults = self._kind._field_defaults
        columns = {
            name: [v.get(name, defaults[name]) for v in values] if name in defaults else [v[name] for v in values]
            for name in self.columns
        }
        return {name: list(map(_number, column)) for name, column in columns.items()} if odd else columns

    def cut(self, step: int) -> None:
        """Leave out what is from this step on."""
        keep = bisect_left(self.columns["step"], step)
        for column in self.columns.values():
            del column[keep:]

    def __len__(self) -> int:
        return len(self.columns["step"])

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> list[R]: ...
    def __getitem__(self, index: int | slice) -> R | list[R]:
        if isinstance(index, slice):
            return [self._kind(*values) for values in zip(*(c[index] for c in self.columns.values()), strict=True)]
        row: R = self._kind(*(column[index] for column in self.columns.values()))
        return row

    def __iter__(self) -> Iterator[R]:
        return map(self._kind, *self.columns.values())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows of {len(self)} {self._kind.__name__}"


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in NUMBERS else value
