from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepguard.views.frame import Frame, lr_applied, r_asked, r_taken
from stepguard.views.plain import PlainView
from stepguard.views.tally import Tallies, add_events, brief

SAFE, BEYOND, CUT = "green", "red", "yellow"


def watch(console: Console, title: str, runs: Sequence[str], target: float, total: int) -> LiveView | PlainView:
    """A view of runs that train side by side, fitting where the output goes; ``total`` frames will come."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, title, runs, target, total)
    return PlainView(console, title, runs)


class LiveView:
    """Runs side by side in a terminal, redrawn at most ten times a second."""

    def __init__(self, console: Console, title: str, runs: Sequence[str], target: float, total: int):
        self._console, self._title, self._runs, self._target = console, title, runs, target
        self._frames: dict[str, Frame] = {}
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

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.update(self._render(), refresh=True)
        self._live.stop()

    def stage(self, text: str) -> None:
        """Begin anew, under this heading."""
        self._progress.update(self._task, description=text)
        self._frames, self._tallies = {}, {}

    def frame(self, run: str, frame: Frame) -> None:
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
        body = Group(title, progress, self._run_table(), _legend(), Text(), self._event_table())
        # Room for the ^C that a terminal writes after the last line: wrapped, it would shift the redrawing.
        return Panel(body, width=self._console.width - 2)

    def _run_table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("run", no_wrap=True)
        for heading in ("step", "loss", "acc %", "r asked"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("r, limit |", ratio=1, no_wrap=True)
        for heading in ("lr asked", "applied"):
            table.add_column(heading, justify="right", no_wrap=True)
        for run in self._runs:
            table.add_row(run, *_cells(self._frames.get(run), self._target))
        return table

    def _event_table(self) -> Table:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in ("event", "", "first", "more", "latest"):
            table.add_column(heading, justify="right" if heading == "more" else "left")
        for (run, kind), tally in self._tallies.items():
            more = (f"{tally.times - 1}", brief(tally.latest)) if tally.times > 1 else ()
            table.add_row(run, kind, brief(tally.first), *more)
        if not self._tallies:
            table.add_row("none yet")
        return table


def _cells(frame: Frame | None, target: float) -> list[RenderableType]:
    if frame is None:
        return []
    return [
        f"{frame.step}",
        f"{frame.loss:.3g}",
        f"{frame.accuracy:.1f}",
        f"{r_asked(frame):.3g}",
        _gauge(r_asked(frame), r_taken(frame), target),
        f"{frame.lr:.3g}",
        f"{lr_applied(frame):.3g}",
    ]


def _gauge(asked: float, taken: float, target: float) -> Table:
    """The log axis of r: three decades up to the limit, six beyond it."""
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(width=1)
    grid.add_column(ratio=2)
    # A step made exactly as long as the limit may come out a rounding beyond it.
    beyond = CUT if taken <= target * (1 + 1e-6) else BEYOND
    grid.add_row(
        _bar(math.log10(taken / target) / 3 + 1 if taken > 0 else taken, SAFE),
        "|",
        _bar(math.log10(asked / target) / 6 if asked > 0 else asked, beyond),
    )
    return grid


def _bar(share: float, style: str) -> ProgressBar:
    # Not a number is drawn as full: nothing is more dangerous.
    share = 1.0 if math.isnan(share) else min(max(share, 0.0), 1.0)
    return ProgressBar(total=1.0, completed=share, complete_style=style, finished_style=style)


def _legend() -> Text:
    parts = (("safe", SAFE), ("  beyond the limit, taken", BEYOND), ("  beyond the limit, cut off", CUT))
    return Text.assemble(*parts, justify="right")
