from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

from rich.console import Console

from stepguard.views.chart import Chart as Columns
from stepguard.views.report.bars import bars
from stepguard.views.report.blocks import Block, Chart, Facts, Grid, Items, Say, Section, Verdict
from stepguard.views.report.sections import sections, summary
from stepguard.views.report.told import Told

_BARS = 16
_WIDTH = 80
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown(told: Sequence[Told]) -> str:
    """The post-mortem of runs as Markdown, as GitHub shows it."""
    lines = ["# stepguard: what happened", ""]
    if len(told) > 1:
        lines += _section(summary([each.post for each in told]), told[0])
    for each in told:
        for section in sections(each.post):
            lines += _section(section, each)
    return "\n".join(lines).rstrip() + "\n"


def text_chart(told: Told) -> str:
    """R over the steps, drawn with letters."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(Columns(told.trail(), told.limit, height=7))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _section(section: Section, told: Told) -> Iterator[str]:
    first = isinstance(section.blocks[0], Verdict) or section.title.endswith("spoiled")
    yield f"{'##' if first else '###'} {_plain(section.title)}"
    yield ""
    for block in section.blocks:
        lines = list(_block(block, told))
        yield from [*lines, ""] if lines else []


def _block(block: Block, told: Told) -> Iterator[str]:
    if isinstance(block, Verdict):
        yield f"**{_plain(block.text)}**"
    elif isinstance(block, Say):
        yield _plain(block.text)
    elif isinstance(block, Facts):
        yield from (f"- {name}: {_plain(value)}" for name, value in block.pairs)
    elif isinstance(block, Items):
        yield from (f"{i}. **{_plain(do)}** {_plain(why)}" for i, (do, why) in enumerate(block.pairs, 1))
    elif isinstance(block, Grid):
        yield from _grid(block)
    elif isinstance(block, Chart) and block.name == "r":
        yield from (f"r, largest of each few steps; the line is at {told.limit:g}:", "", "```", text_chart(told), "```")


def _grid(block: Grid) -> Iterator[str]:
    headings, rules = list(block.headings), [":--" if i < block.words else "--:" for i in range(len(block.headings))]
    drawn = bars(block.bars, _BARS) if block.bars else []
    if drawn:
        headings, rules = [*headings, ""], [*rules, ":--"]
    yield _row(_plain(heading) for heading in headings)
    yield _row(rules)
    for i, row in enumerate(block.rows):
        # Spaces at the left of a cell are no part of it.
        bar = [drawn[i].replace(" ", "\N{NO-BREAK SPACE}")] if drawn else []
        yield _row([*(_plain(cell) for cell in row), *bar])


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that Markdown takes for nothing but text."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
