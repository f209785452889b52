from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from stepguard.views.frame import Frame

F = TypeVar("F", bound=Frame)


@dataclass(frozen=True)
class Column(Generic[F]):
    """One column of the live table."""

    heading: str
    cell: Callable[[F], RenderableType]
    wide: bool = False
    """Takes the room that the others leave; for bars."""


@dataclass(frozen=True)
class Look(Generic[F]):
    """What a demo shows of its frames, besides the run's name and the events."""

    unit: str
    """What is counted: steps or epochs."""
    columns: tuple[Column[F], ...]
    legend: Text
    line: Callable[[F], str]
    """A frame in words, where there is no terminal."""


def bar(share: float, style: str) -> ProgressBar:
    """A bar filled to this share of its width."""
    # Not a number is drawn as full: nothing is more dangerous.
    share = 1.0 if math.isnan(share) else min(max(share, 0.0), 1.0)
    return ProgressBar(total=1.0, completed=share, complete_style=style, finished_style=style)
