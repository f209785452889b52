from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from stepguard.views.chart import Chart as Columns
from stepguard.views.report.bars import bars
from stepguard.views.report.blocks import Block, Chart, Facts, Grid, Items, Say, Section, Verdict
from stepguard.views.report.sections import sections, summary
from stepguard.views.report.told import Told

_BARS = 20


def show(console: Console, told: Sequence[Told]) -> None:
    """Print the post-mortem of runs; of several a table of all comes first."""
    if len(told) > 1:
        console.print(Group(*_section(console, summary([each.post for each in told]), told[0])))
    for each in told:
        for section in sections(each.post):
            console.print(Group(*_section(console, section, each)))


def _section(console: Console, section: Section, told: Told) -> Iterator[RenderableType]:
    first = isinstance(section.blocks[0], Verdict)
    yield Text()
    yield Rule(Text(section.title, "bold"), align="left", style="dim") if first else Text(section.title, "bold")
    for block in section.blocks:
        shown = _block(console, block, told)
        if shown is not None:
            yield shown


def _block(console: Console, block: Block, told: Told) -> RenderableType | None:
    if isinstance(block, Verdict):
        return Panel(Text(block.text), box=box.ROUNDED, border_style="red" if block.bad else "green")
    if isinstance(block, Say):
        return Text(block.text)
    if isinstance(block, Facts):
        return _facts(block)
    if isinstance(block, Items):
        return _items(block)
    if isinstance(block, Grid):
        return _grid(block, console.options.ascii_only)
    if isinstance(block, Chart) and block.name == "r":
        return Padding(Columns(told.trail(), told.limit, height=7), (1, 0, 0, 0))
    return None  # the other pictures are for a page


def _facts(block: Facts) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in block.pairs:
        table.add_row(name, Text(value))
    return table


def _items(block: Items) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for number, (do, because) in enumerate(block.pairs, 1):
        table.add_row(f"{number}.", Text.assemble((do, "bold"), " ", because))
    return table


def _grid(block: Grid, ascii_only: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for i, heading in enumerate(block.headings):
        words = i < block.words
        table.add_column(Text(heading), justify="left" if words else "right", overflow="fold", no_wrap=not words)
    drawn = bars(block.bars, _BARS, ascii_only) if block.bars else []
    if drawn:
        table.add_column("", no_wrap=True, width=_BARS)
    for i, row in enumerate(block.rows):
        bar = [Text(drawn[i], "cyan" if block.bars[i] >= 0 else "yellow")] if drawn else []
        table.add_row(*(Text(cell) for cell in row), *bar)
    return table
