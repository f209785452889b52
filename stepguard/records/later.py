from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from stepguard.records.collapse import CollapseReading
from stepguard.records.reading import Event, Reading
from stepguard.records.recorder import Recorder


class Later:
    """A recorder that is made when the place for it is known, as that of a trainer's own log is only late.

    With the first record at the latest. One that cannot be made raises there, as one that cannot write.

    Args:
        make: Makes it, or says with None that there is no place for one.

    Example:
        >>> from stepguard.records import Memory
        >>> memory = Memory()
        >>> later = Later(lambda: memory)
        >>> later.event(Event(3, "skipped", "step 3 moved nothing"))
        >>> memory.events[0].step
        3
    """

    def __init__(self, make: Callable[[], Recorder | None]):
        self._make, self._made = make, False
        self._recorder: Recorder | None = None

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Write a reading."""
        if recorder := self._there():
            recorder.reading(reading)

    def event(self, event: Event) -> None:
        """Write an event."""
        if recorder := self._there():
            recorder.event(event)

    def open(self) -> None:
        """Make it now, if that can be."""
        with suppress(Exception):
            self._there()

    def close(self) -> None:
        """Close it, if it was made."""
        if self._recorder:
            self._recorder.close()

    def _there(self) -> Recorder | None:
        if not self._made:
            self._recorder = self._make()
            self._made = True
        return self._recorder
