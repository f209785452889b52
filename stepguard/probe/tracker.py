from __future__ import annotations

import weakref

from torch import Tensor

from stepguard.probe.outline import Ref, UntraceableError, version
from stepguard.probe.reasons import CHANGED_BY_ANOTHER


class Tracker:
    """Which step made a tensor, for as long as the tensor lives."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], int, Ref | UntraceableError]] = {}

    def clear(self) -> None:
        """Forget all of it."""
        self._made.clear()  # the callbacks hold on to this very dict

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._made

    def note(self, tensor: Tensor, origin: Ref | UntraceableError) -> None:
        """Remember where it comes from, or why it cannot be made again."""
        key = id(tensor)

        def forget(dead: weakref.ref[Tensor]) -> None:
            if key in self._made and self._made[key][0] is dead:
                del self._made[key]

        self._made[key] = weakref.ref(tensor, forget), version(tensor), origin

    def find(self, tensor: Tensor) -> Ref | None:
        """Where a tensor comes from; None if it was there before.

        Raises:
            UntraceableError: If it was changed in place since, or cannot be made again.
        """
        entry = self._made.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return None
        _, noted, origin = entry
        if isinstance(origin, UntraceableError):
            raise UntraceableError(*origin.args)  # a new one, since a traceback holds on to what its frames hold
        if noted != version(tensor):
            raise UntraceableError(CHANGED_BY_ANOTHER)
        return origin
