from __future__ import annotations

from collections.abc import Callable

from stepguard.records.collapse import CollapseReading
from stepguard.records.reading import Event, Reading
from stepguard.records.recorder import Recorder


class Later:
    """A recorder that is made when there is first something to write: a trainer's own log has a place by then.

    Args:
        make: Makes it, or says with None that there is no place for one.

    Raises:
        Exception: What ``make`` raises, at each record, until it can.

    Example:
        >>> from stepguard.records import Memory
        >>> memory = Memory()
        >>> later = Later(lambda: memory)
        >>> later.event(Event(3, "skipped", "step 3 moved nothing"))
        >>> memory.events[0].step
        3
    """

    def __init__(self, make: Callable[[], Recorder | None]):
        self._make, self._made, self._recorder = make, False, None

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Write a reading."""
        if recorder := self._there():
            recorder.reading(reading)

    def event(self, event: Event) -> None:
        """Write an event."""
        if recorder := self._there():
            recorder.event(event)

    def close(self) -> None:
        """Close it, if it was made."""
        if self._recorder:
            self._recorder.close()

    def _there(self) -> Recorder | None:
        if not self._made:
            self._recorder = self._make()
            self._made = True
        return self._recorder
