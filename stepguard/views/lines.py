from __future__ import annotations

from collections.abc import Callable

from stepguard.records import Event, Telling
from stepguard.views.course import Course
from stepguard.views.words import facts, softmax, state


class Lines:
    """A run as lines, for a pipe or a log file: events as they come, and now and then how it stands.

    Args:
        put_out: Prints a line.
        begin: What each line begins with.
        every: Seconds from one line on how it stands to the next.
    """

    def __init__(self, put_out: Callable[[str], object], begin: str, every: float):
        self._put_out, self._begin, self._every = put_out, begin, every
        self._telling = Telling()
        self._stood: float | None = None
        self._said: tuple[int, bool] | None = None

    def event(self, event: Event) -> None:
        """Something happened; said unless much the same was said just before."""
        if event.kind != "found":
            self._say(*self._telling.lines(event))

    def stands(self, course: Course, now: float) -> None:
        """Say how it stands, if that is due and news."""
        due = self._stood is None or now - self._stood >= self._every
        if due and course.latest is not None and self._said != (course.step, course.silent(now)):
            self._stand(course, now)

    def end(self, course: Course, now: float) -> None:
        """Say what has not been said so far, and how it stood in the end."""
        self._say(*self._telling.rest())
        if course.latest is not None and (self._said is None or self._said[0] != course.step):
            self._stand(course, now)

    def _stand(self, course: Course, now: float) -> None:
        self._stood, self._said = now, (course.step, course.silent(now))
        said = [text for text, _ in [*facts(course), *softmax(course)]]
        how = state(course, now)[0]
        self._say(", ".join(said if how == "running" else [*said, how]))

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._put_out(f"{self._begin}{line}")
