from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from stepguard.records.tally import brief
from stepguard.views.followed import Followed
from stepguard.views.words import state


def runs_table(runs: Iterable[Followed], now: float, most: int) -> Table:
    """Runs in a line each, those that wrote last first.

    Args:
        runs: The runs.
        now: The time.
        most: Lines; of more runs the older ones are only counted.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, expand=True)
    for heading in ("run", "", "step", "r", "beyond"):
        table.add_column(heading, justify="right" if heading in ("step", "r", "beyond") else "left", no_wrap=True)
    table.add_column("latest event", no_wrap=True, ratio=1)
    newest_first = sorted(runs, key=lambda run: run.course.latest or 0.0, reverse=True)
    for run in newest_first[:most]:
        course, (said, well) = run.course, state(run.course, now)
        r = course.reading
        event = next(iter(course.streaks(1)), None)
        table.add_row(
            Text(run.name),
            Text(said, "green" if well else "yellow"),
            f"{course.step:,}",
            Text(f"{r.r:.3g}", "red" if r.breach else "") if r else "",
            f"{course.beyond:,}",
            Text(f"{event.latest.kind}, {brief(event.latest)}" if event else "none"),
        )
    if len(newest_first) > most:
        table.add_row(f"and {len(newest_first) - most} more")
    return table
