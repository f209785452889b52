from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stepguard.records.tally import Tally, brief
from stepguard.views.chart import Chart
from stepguard.views.course import Course
from stepguard.views.words import facts, softmax, state


def run_panel(name: str, course: Course, now: float, *, height: int = 5, events: int = 5) -> Panel:
    """One run as a picture: r with its limit over time, the latest numbers, the latest events.

    Args:
        name: Of the run.
        course: How it goes.
        now: The time.
        height: Of the chart, in lines.
        events: How many lines there are for events.
    """
    said, well = state(course, now)
    title = Text.assemble((name, "bold"), "  ", (said, "green" if well else "yellow"))
    parts: list[RenderableType] = [Columns([_fact(*fact) for fact in facts(course)], padding=(0, 3))]
    if course.reading is not None:
        target = course.reading.target
        # Where nobody tells the target, beside r = 1, the end of the radius.
        parts.append(Chart(course.r, 1.0 if math.isnan(target) else target, height))
    parts.extend(_fact(*fact) for fact in softmax(course))
    parts.append(_events(course.streaks(events)))
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED)


def _fact(text: str, bad: bool) -> Text:
    return Text(text, "red" if bad else "")


def _events(streaks: Iterable[Tally]) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("event", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    table.add_column("since step", justify="right", no_wrap=True)
    table.add_column("latest", ratio=1, no_wrap=True, overflow="ellipsis")
    for first, latest, times in streaks:
        table.add_row(latest.kind, f"{times:,}", f"{first.step:,}", Text(brief(latest)))
    if not table.row_count:
        table.add_row("none yet")
    return table
