from __future__ import annotations

import atexit
import sys
import time
from typing import Literal

from rich import get_console
from rich.console import Console
from rich.errors import LiveError
from rich.live import Live

from stepguard.records import SAID_ELSEWHERE, CollapseReading, Event, Reading
from stepguard.views.console import is_screen
from stepguard.views.course import Course
from stepguard.views.lines import Lines
from stepguard.views.run_panel import run_panel

_EVERY = 0.5
"""Seconds from one drawing to the next: a drawing takes as long as a small training step."""


class Panel:
    """A live panel below what your own loop prints: r with its limit over time, the latest numbers and events.

    Give one to a guard, and the same to a collapse monitor, whose softmax it then shows as well. Where there is no
    terminal, or a tqdm bar is running, it prints lines instead: events as they come, and now and then how the run
    stands. It comes down when what it was given to is detached; of several processes only the first shows one.

    Args:
        name: What it is called.
        console: Where to draw; None is rich's own, whose progress bars then go together with the panel.
        live: False prints lines in a terminal as well; None draws where that can be.
        every: Seconds between two lines on how the run stands.

    Example:
        >>> import torch, stepguard
        >>> from stepguard.views import Panel
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with stepguard.attach(model, optimizer, recorders=[Panel(live=False)]):
        ...     torch.nn.functional.cross_entropy(model(torch.eye(2)), torch.tensor([0, 1])).backward()
        ...     optimizer.step()
        stepguard: step 0, r 0.0... of 1, lr 0.1, safe up to ..., 0 of 1 readings beyond
    """

    def __init__(
        self,
        name: str = "stepguard",
        *,
        console: Console | None = None,
        live: Literal[False] | None = None,
        every: float = 30.0,
    ):
        from stepguard.guard.ranks import is_first  # torch; only a process that trains has a panel

        self._name, self._console = name, console or get_console()
        self._draws = live is None and is_screen(self._console)
        self._silent = not is_first()
        self._course = Course()
        self._lines = Lines(_print, f"{name}: ", every)
        self._live: Live | None = None
        self._drawn = 0.0

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Take a reading; redraws at most twice a second."""
        self._take(reading)

    def event(self, event: Event) -> None:
        """Take an event."""
        self._take(event)

    def close(self) -> None:
        """Leave the last picture where it is; a later reading begins another below."""
        self._course.ended = True
        if self._live is not None:
            self._draw(time.time())
            self._stop()
        elif not (self._draws or self._silent):
            self._lines.end(self._course, time.time())

    def _take(self, what: Reading | CollapseReading | Event) -> None:
        if self._silent:
            return
        now = time.time()
        self._course.take(what, now)
        if self._draws and _tqdm_runs():
            self._stop()
            self._draws = False
        if self._draws and self._live is None:
            self._begin()
        if not self._draws:
            if not isinstance(what, Event):
                self._lines.stands(self._course, now)
            elif what.kind not in SAID_ELSEWHERE:
                self._lines.event(what)
        elif now - self._drawn >= _EVERY:
            self._draw(now)

    def _begin(self) -> None:
        # No thread of rich's, which would draw while a record is being taken.
        self._live = Live(console=self._console, auto_refresh=False)
        try:
            self._live.start()
        except LiveError:  # a rich older than 14.1 bears only one; the user's was there first
            self._live, self._draws = None, False
        else:
            atexit.register(self.close)  # or an error that ends the program would leave the cursor hidden

    def _draw(self, now: float) -> None:
        if self._live is not None:
            self._drawn = now
            self._live.update(run_panel(self._name, self._course, now), refresh=True)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self.close)


def _tqdm_runs() -> bool:
    """Whether a bar of tqdm is running: it writes where the cursor is, over whatever is drawn there."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    return bool(getattr(bars, "_instances", ()))


def _print(line: str) -> None:
    """Print a line, above the bars of tqdm if there are any."""
    bars = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if bars is None:
        print(line)
    else:
        bars.write(line)
