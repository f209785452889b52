from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Generic

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stepguard.records.tally import Tallies, add_events, brief
from stepguard.views.look import F, Look
from stepguard.views.plain import PlainView


def watch(console: Console, title: str, runs: Sequence[str], look: Look[F], total: int) -> LiveView[F] | PlainView[F]:
    """A view of runs that train side by side, fitting where the output goes; ``total`` frames will come."""
    if is_screen(console):
        return LiveView(console, title, runs, look, total)
    return PlainView(console, title, runs, look)


def is_screen(console: Console) -> bool:
    """Whether what is drawn there can be drawn over."""
    return console.is_terminal and not console.is_dumb_terminal


class LiveView(Generic[F]):
    """Runs side by side in a terminal, redrawn at most ten times a second."""

    def __init__(self, console: Console, title: str, runs: Sequence[str], look: Look[F], total: int):
        self._console, self._title, self._runs, self._look = console, title, runs, look
        self._frames: dict[str, F] = {}
        self._tallies: Tallies = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total)
        # Redrawn from here alone: a refreshing thread would look while a frame is being taken in.
        self._live = Live(self._render(), console=console, auto_refresh=False)
        self._drawn = 0.0

    def __enter__(self) -> LiveView[F]:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.update(self._render(), refresh=True)
        self._live.stop()

    def stage(self, text: str) -> None:
        """Begin anew, under this heading."""
        self._progress.update(self._task, description=text)
        self._frames, self._tallies = {}, {}

    def frame(self, run: str, frame: F) -> None:
        """Take the latest step of a run."""
        self._frames[run] = frame
        add_events(self._tallies, run, frame.events)
        self._progress.advance(self._task)
        now = time.monotonic()
        # After the last of the runs, so that all are shown at the same step.
        if run == self._runs[-1] and now - self._drawn > 0.1:
            self._drawn = now
            self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        title = Text(self._title, style="bold")
        progress = self._progress.get_renderable()
        body = Group(title, progress, self._run_table(), self._look.legend, Text(), self._event_table())
        # Room for the ^C that a terminal writes after the last line: wrapped, it would shift the redrawing.
        return Panel(body, width=self._console.width - 2)

    def _run_table(self) -> Table:
        gap = 0 if self._console.width < 100 else 1
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, gap, 0, 0), pad_edge=False)
        table.add_column("run", no_wrap=True)
        table.add_column(self._look.unit, justify="right", no_wrap=True)
        for column in self._look.columns:
            if column.wide:
                table.add_column(column.heading, ratio=1, no_wrap=True)
            else:
                table.add_column(column.heading, justify="right", no_wrap=True)
        for run in self._runs:
            frame = self._frames.get(run)
            cells = [f"{frame.step}", *(column.cell(frame) for column in self._look.columns)] if frame else []
            table.add_row(run, *cells)
        return table

    def _event_table(self) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in ("event", "", "first", "more", "latest"):
            table.add_column(heading, justify="right" if heading == "more" else "left")
        unit = self._look.unit
        for (run, kind), tally in self._tallies.items():
            more = (f"{tally.times - 1}", brief(tally.latest, unit)) if tally.times > 1 else ()
            table.add_row(run, kind, brief(tally.first, unit), *more)
        if not self._tallies:
            table.add_row("none yet")
        return table
