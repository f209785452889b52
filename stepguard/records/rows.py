from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

from stepguard.records.columns import Column, makers

R = TypeVar("R")


class Rows(Sequence[R], Generic[R]):
    """A list of readings that keeps columns, and makes a reading only of what is asked for.

    A million readings take a fifth of the memory that a list of them would, and a whole column is at hand.

    Args:
        kind: What a row is: a NamedTuple whose first field is the step.
        rows: What to begin with.

    Attributes:
        columns: The values of each field, as a list would have them.

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
        self._makers = makers(kind)
        self.columns: dict[str, Column] = {name: make(()) for name, make in self._makers.items()}
        self.extend(self.taken(list(zip(*rows, strict=True))))

    def append(self, row: R) -> None:
        """Add one."""
        self.extend(self.taken([(value,) for value in cast(Any, row)]))

    def extend(self, taken: Mapping[str, Column]) -> None:
        """Add many, as :meth:`taken` gives them."""
        for name, column in taken.items():
            self.columns[name].extend(cast(Any, column))

    def taken(self, values: Sequence[Sequence[Any]]) -> dict[str, Column]:
        """The columns of what each field has in several rows; none of no rows.

        Raises:
            TypeError, ValueError, OverflowError: If one has something else where a number should be.
        """
        return {name: make(column) for (name, make), column in zip(self._makers.items(), values, strict=bool(values))}

    def cut(self, step: int) -> None:
        """Leave out what is from this step on."""
        keep = self.first(step)
        for column in self.columns.values():
            column.cut(keep)

    def first(self, step: int) -> int:
        """Index of the first that is of this step or a later one."""
        return bisect_left(self.columns["step"], step)

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
