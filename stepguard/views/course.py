from __future__ import annotations

from collections import deque

from stepguard.records import CollapseReading, Event, Reading
from stepguard.records.tally import Tally
from stepguard.views.trail import Trail

_IN_A_ROW = 50
"""Steps between two events of a kind that are told as one."""
_RECENT = 60.0
"""Seconds over which the pace is taken."""


class Course:
    """How a run goes: all that a view of it shows, in bounded room however long it is.

    Attributes:
        r: Of the steps that were asked for.
        reading: The latest of r.
        collapse: The latest of the softmax.
        measured: How many readings of r there were.
        beyond: How many of them were beyond their target.
        step: The latest of all records.
        latest: When that came, in Unix time; or when the run began, as long as there is none.
        ended: Whether the run has said that it is over.
    """

    def __init__(self) -> None:
        self.r = Trail()
        self.reading: Reading | None = None
        self.collapse: CollapseReading | None = None
        self.measured = self.beyond = self.step = 0
        self.latest: float | None = None
        self.ended = False
        self._streaks: deque[Tally] = deque(maxlen=100)
        self._marks: deque[tuple[float, int]] = deque(maxlen=256)

    def take(self, what: Reading | CollapseReading | Event, at: float) -> None:
        """Take the next record, which came at this time."""
        self.ended = False
        if isinstance(what, Event):
            self._event(what)
        elif isinstance(what, CollapseReading):
            self.collapse = what
        else:
            self.reading = what
            self.r.add(what.step, what.r)
            self.measured += 1
            self.beyond += what.breach
        self.latest, self.step = at, max(what.step, self.step)
        if not self._marks or what.step > self._marks[-1][1]:
            self._marks.append((at, what.step))
        while len(self._marks) > 2 and self._marks[0][0] < at - _RECENT:
            self._marks.popleft()

    def streaks(self, most: int) -> list[Tally]:
        """The latest events, those in a row together, the oldest first."""
        return sorted(self._streaks, key=lambda tally: tally.latest.step)[-most:]

    @property
    def pace(self) -> float | None:
        """Steps a second, lately; None before the second record."""
        (began, first), (now, last) = (self._marks[0], self._marks[-1]) if self._marks else ((0.0, 0), (0.0, 0))
        return (last - first) / (now - began) if now > began else None

    def silent(self, now: float) -> bool:
        """Whether it has been quiet for much longer than usual."""
        if self.latest is None:
            return False
        usual = (self._marks[-1][0] - self._marks[0][0]) / max(len(self._marks) - 1, 1) if self._marks else 0.0
        return now - self.latest > max(30.0, 10 * usual)

    def _event(self, event: Event) -> None:
        if event.kind == "found":
            return  # worth a line in a log, not a place on a screen
        for i, tally in enumerate(self._streaks):
            if tally.first.kind == event.kind and event.step - tally.latest.step <= _IN_A_ROW:
                self._streaks[i] = Tally(tally.first, event, tally.times + 1)
                return
        self._streaks.append(Tally(event, event, 1))
