"""Runs looked at from outside, by what they have written: once, in a terminal as they go on, or as lines."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from stepguard.records import Event, find_runs, read_runs
from stepguard.views.console import is_screen
from stepguard.views.followed import Followed
from stepguard.views.lines import Lines
from stepguard.views.run_panel import run_panel
from stepguard.views.runs_table import runs_table

_STANDS = 30.0
"""Seconds from one line on how a run stands to the next."""
_AROUND = 3.0
"""Seconds from one look for new runs to the next."""


class Watching:
    """The runs below a folder.

    Args:
        folder: The folder.
        only: Name of the one to look at; None is all of them.

    Raises:
        FileNotFoundError: If there is no such folder.
        LookupError: If there is no run in it, or none of that name.
    """

    def __init__(self, folder: Path, only: str | None = None):
        self._folder, self._only = folder, only
        self._looked = 0.0
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; give the log_dir= of a run, or one above several")
        self.runs: list[Followed] = []
        self._look_around()
        if not self.runs:
            others = Watching(folder).runs if only else []
            if others:
                names = ", ".join(run.name for run in others)
                raise LookupError(f"there is no run {only} in {folder}; there are {names}")
            raise LookupError(
                f"there are no records in {folder}. They are written where stepguard is told to: "
                f'stepguard.attach(model, optimizer, log_dir="{folder}"), and in Lightning where its logger writes'
            )

    def update(self) -> list[tuple[Followed, list[Event]]]:
        """Read on; returns the runs, each with what happened in it since the last time."""
        if time.monotonic() - self._looked > _AROUND:
            self._look_around()
        return [(run, run.update()) for run in self.runs]

    @property
    def newest(self) -> Followed:
        """The run that wrote last."""
        return max(self.runs, key=lambda run: run.course.latest or 0.0)

    def picture(self, now: float, height: int) -> RenderableType:
        """The newest run in full, below a table of all if there are several.

        Args:
            now: The time.
            height: Lines that there are for it.
        """
        newest = self.newest
        tall, few = (5, 3) if height < 30 else (8, 6)
        panel = run_panel(newest.name, newest.course, now, height=tall, events=few)
        return panel if len(self.runs) == 1 else Group(runs_table(self.runs, now, max(height - 20, 3)), panel)

    def _look_around(self) -> None:
        """Find runs that began since the last time."""
        self._looked = time.monotonic()
        known = {run.run.path for run in self.runs}
        found = find_runs(self._folder)
        if not found and not self.runs:  # perhaps there are TensorBoard's scalars
            found = read_runs(self._folder)
        for run in found:
            name = self._folder.resolve().name if run.name == "." else run.name
            if run.path not in known and self._only in (None, name):
                self.runs.append(Followed(run, name))


def watch(console: Console, watching: Watching, every: float) -> None:
    """Look at runs until Ctrl-C; without a terminal, until all have ended."""
    if is_screen(console):
        _draw(console, watching, every)
    else:
        _tell(console, watching, every)


def show(console: Console, watching: Watching) -> None:
    """Look at runs once."""
    watching.update()
    console.print(watching.picture(time.time(), console.height))


def _draw(console: Console, watching: Watching, every: float) -> None:
    watching.update()
    try:
        # On the terminal's other screen, which bears being made smaller; what was there before comes back.
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(watching.picture(time.time(), console.height), refresh=True)
                time.sleep(every)
                watching.update()
    except KeyboardInterrupt:
        show(console, watching)


def _tell(console: Console, watching: Watching, every: float) -> None:
    def put_out(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    lines: dict[Path, Lines] = {}
    try:
        while not lines or not all(run.course.ended for run in watching.runs):
            time.sleep(every if lines else 0.0)
            for run, events in watching.update():
                told = lines.setdefault(run.run.path, Lines(put_out, f"{run.name}: ", _STANDS))
                for event in events:
                    told.event(event)
                (told.end if run.course.ended else told.stands)(run.course, time.time())
    except KeyboardInterrupt:
        for run in watching.runs:
            if run.run.path in lines:
                lines[run.run.path].end(run.course, time.time())
