from __future__ import annotations

from dataclasses import dataclass

from stepguard.records.reading import Event
from stepguard.records.tally import brief

SAID_ELSEWHERE = frozenset({"found", "skipped", "unmeasured", "fallback", "caution", "stop"})
"""Kinds that the process itself warns of, or that only a log wants."""
_WAIT = 10
_CALM = 1000
"""Steps without an event of a kind after which the next is news again."""


@dataclass
class _Streak:
    latest: Event
    told: int
    wait: int = _WAIT
    untold: int = 0


class Telling:
    """Events as lines that never flood: the first of its kind in full, of those that follow ever fewer, with a count.

    A spike that is held is an event at every step: told at its 1st, 11th, 31st, 71st... step, so that a million of
    them are some twenty lines.

    Args:
        label: What a line of a count begins with; messages have it already.

    Example:
        >>> telling = Telling()
        >>> for step in range(200, 212):
        ...     for line in telling.lines(Event(step, "skipped", f"step {step}: the optimizer moved nothing")):
        ...         print(line)
        step 200: the optimizer moved nothing
        and 10 more: skipped, latest step 210: the optimizer moved nothing
        >>> telling.rest()
        ['and 1 more: skipped, latest step 211: the optimizer moved nothing']
    """

    def __init__(self, label: str = ""):
        self._label = label
        self._streaks: dict[str, _Streak] = {}

    def lines(self, event: Event) -> list[str]:
        """What there is to say now that this has happened: mostly nothing."""
        streak = self._streaks.get(event.kind)
        # A run that went on from an earlier step tells what happens there again.
        if streak is None or not 0 <= event.step - streak.latest.step < _CALM:
            self._streaks[event.kind] = _Streak(event, event.step)
            return [*(self._count(streak) if streak else []), event.message]
        streak.latest = event
        streak.untold += 1
        if event.step - streak.told < streak.wait:
            return []
        streak.told, streak.wait = event.step, 2 * streak.wait
        if streak.untold == 1:
            streak.untold = 0
            return [event.message]
        return self._count(streak)

    def rest(self) -> list[str]:
        """What has not been told so far."""
        return [line for streak in self._streaks.values() for line in self._count(streak)]

    def _count(self, streak: _Streak) -> list[str]:
        more, streak.untold = streak.untold, 0
        return [f"{self._label}and {more} more: {streak.latest.kind}, latest {brief(streak.latest)}"] if more else []
