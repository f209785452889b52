from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepguard.records import Event, Run
from stepguard.views.course import Course


class Followed:
    """A run whose records another process may still be writing, and how it goes.

    Args:
        run: Not read yet, or as far as it has been.
        name: What it is called.
    """

    def __init__(self, run: Run, name: str):
        self.run, self.name, self.course = run, name, Course()
        self._tails = (_Tail(), _Tail(), _Tail())

    def update(self) -> list[Event]:
        """Read on; returns the events that are new, with their readings."""
        try:
            self.run.update()
        except FileNotFoundError:  # somebody tidies up; what was read is still worth a look
            return []
        run, before = self.run, self.course.latest
        lists: tuple[Sequence[Any], ...] = (run.readings, run.collapses, run.events)
        cut = any(tail.cut(found) for tail, found in zip(self._tails, lists, strict=True))
        if cut:  # it went on from an earlier step, so what came after that never was
            self.course, self._tails = Course(), (_Tail(), _Tail(), _Tail())
        news = [record for tail, found in zip(self._tails, lists, strict=True) for record in tail.new(found)]
        events = []
        for record in sorted(news, key=lambda record: record.step):  # of one step, an event comes after its reading
            at = run.times[record.step]
            if isinstance(record, Event):
                record = self._with_reading(record)
                if not cut or before is None or at > before:
                    events.append(record)
            self.course.take(record, at)
        if self.course.latest is None and run.starts:
            self.course.latest = run.starts[-1].get("time")
        self.course.ended = run.ended
        return events

    def _with_reading(self, event: Event) -> Event:
        """As it was told: in the file its reading has a line of its own."""
        softmax = event.kind in ("warning", "onset", "recovery", "cure_on", "cure_off", "stop")
        numbers = event.kind in ("breach", "clamp", "withheld")
        reading = self.course.collapse if softmax else self.course.reading if numbers else None
        return event._replace(reading=reading) if reading is not None and reading.step == event.step else event


class _Tail:
    """What has been added to a list since the last time."""

    def __init__(self) -> None:
        self._count, self._last = 0, None

    def cut(self, found: Sequence[Any]) -> bool:
        """Whether something was taken away that had been there."""
        return self._count > 0 and (len(found) < self._count or found[self._count - 1] != self._last)

    def new(self, found: Sequence[Any]) -> Sequence[Any]:
        news = found[self._count :]
        if found:
            self._count, self._last = len(found), found[-1]
        return news
