from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Generic

from rich.console import Console

from stepguard.records.tally import Tallies, Tally, add_events, brief
from stepguard.views.look import F, Look


class PlainView(Generic[F]):
    """Runs side by side as lines, for a pipe or a log file: a block every ``every`` steps, events as they come."""

    def __init__(self, console: Console, title: str, runs: Sequence[str], look: Look[F], every: int = 25):
        self._console, self._look, self._every = console, look, every
        self._width = max(map(len, runs))
        self._unshown: dict[str, F] = {}
        self._tallies: Tallies = {}
        self._told: Tallies = {}
        self._say(title)

    def __enter__(self) -> PlainView[F]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._catch_up()

    def stage(self, text: str) -> None:
        """Begin anew, under this heading."""
        self._catch_up()
        self._tallies, self._told = {}, {}
        self._say(text)

    def frame(self, run: str, frame: F) -> None:
        """Take the latest step of a run."""
        for event in add_events(self._tallies, run, frame.events):
            self._say(f"  ! {run:<{self._width}}  {event.kind}, {brief(event, self._look.unit)}")
            self._told[run, event.kind] = self._tallies[run, event.kind]
        self._unshown[run] = frame
        if (frame.step + 1) % self._every == 0:
            self._show(run)

    def _show(self, run: str) -> None:
        frame = self._unshown.pop(run)
        self._say(f"{self._look.unit} {frame.step:>4}  {run:<{self._width}}  {self._look.line(frame)}")
        for (whose, kind), tally in self._tallies.items():
            # Where one breach comes from is worth a line, how many were looked at is not.
            if whose == run and kind != "culprit" and (more := tally.times - self._told[run, kind].times):
                self._say(
                    f"  ! {run:<{self._width}}  and {more} more: {kind}, latest {brief(tally.latest, self._look.unit)}"
                )
                self._told[run, kind] = Tally(*tally)

    def _catch_up(self) -> None:
        for run in list(self._unshown):
            self._show(run)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
