from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from stepguard.diagnosis.case import Case


class Found(NamedTuple):
    """Why a step is beyond its target."""

    cause: str
    """One of :mod:`stepguard.diagnosis.causes`."""
    began: int
    """The step at which that began."""
    evidence: tuple[str, ...]
    """What tells so, in sentences, each with its numbers."""
    certain: bool = True
    """Whether it came from outside, as in no run that goes well; else a run may have it of itself, in small."""


Rule = Callable[[Case], Found | None]


def number(value: float) -> str:
    """As people read it.

    Example:
        >>> number(0.012345), number(12345.6), number(float("nan"))
        ('0.0123', '12,300', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def times(value: float) -> str:
    """A factor, in words.

    Example:
        >>> times(100.0), times(0.25)
        ('100 times', '0.25 times')
    """
    return f"{number(value)} times"
