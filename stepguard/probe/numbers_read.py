from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TYPED_DIGITS = 8


class Numbers:
    """Notices numbers that were read off a tensor and used again, as in ``z / z.std().item()``.

    Such a number depends on the parameters, but nothing of that can be seen. What can be seen is that one
    was read before, and that a number came later that nobody types: many digits, and others than in the
    step before.

    Attributes:
        before: The numbers of many digits that the step before used.
    """

    def __init__(self) -> None:
        self._anything_read = False
        self._now: set[float] = set()
        self.before: set[float] = set()

    def read(self, result: Any) -> None:
        """A function gave this for a tensor that came of the parameters."""
        if isinstance(result, float) or (isinstance(result, list) and any(isinstance(v, float) for v in result)):
            self._anything_read = True

    def suspicious(self, arguments: Iterable[Any]) -> bool:
        """Whether a function is given such a number."""
        found = {a for a in arguments if isinstance(a, float) and len(repr(a).strip("-0.")) > _TYPED_DIGITS}
        self._now |= found
        return self._anything_read and bool(found - self.before)

    def next_step(self) -> None:
        """What was used now is not new the next time."""
        self._anything_read, self.before, self._now = False, self._now, set()
