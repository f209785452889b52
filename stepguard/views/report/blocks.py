"""What a report is made of, before it is known where it will be shown."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Verdict(NamedTuple):
    """What happened, in a few sentences."""

    text: str
    bad: bool


class Say(NamedTuple):
    """A paragraph."""

    text: str


class Facts(NamedTuple):
    """Names, and what they are."""

    pairs: tuple[tuple[str, str], ...]


class Items(NamedTuple):
    """What to do, each with why."""

    pairs: tuple[tuple[str, str], ...]


class Grid(NamedTuple):
    """A table.

    Attributes:
        headings: Of the columns.
        rows: Their cells.
        words: How many columns, from the left, are words and no numbers.
        bars: A number for each row to be drawn as a bar in a last column; negative ones go the other way.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    bars: tuple[float, ...] = ()


class Chart(NamedTuple):
    """A picture, by its name; not all can be shown everywhere."""

    name: str


Block: TypeAlias = Verdict | Say | Facts | Items | Grid | Chart


class Section(NamedTuple):
    """Blocks under a heading."""

    title: str
    blocks: tuple[Block, ...]
