from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from stepguard.diagnosis.rules.found import number

__all__ = ["also", "counted", "number", "percent", "when"]

_NOTHING = 1e-7
"""What sums of rounding leave."""


def percent(share: float) -> str:
    """A share; what is there does not read as nothing, nor nearly all as all.

    Example:
        >>> percent(0.0), percent(0.00004), percent(0.0312), percent(0.9999), percent(1.0)
        ('0%', '0.004%', '3.1%', '99.99%', '100%')
    """
    if math.isnan(share):
        return "unknown"
    size = abs(share)
    if size < _NOTHING or size == 1.0:
        return f"{abs(share):.0%}" if size < _NOTHING else f"{share:.0%}"
    if size < 0.001:
        return f"{100 * share:.1g}%"
    return f"{share:.2%}" if 0.999 < size < 1 else f"{share:.1%}"


def counted(count: int, what: str) -> str:
    """So many of something.

    Example:
        >>> counted(1, "step"), counted(2000, "step"), counted(0, "look")
        ('1 step', '2,000 steps', '0 looks')
    """
    return f"{count:,} {what}{'s' * (count != 1)}"


def also(parts: Sequence[str]) -> str:
    """In a row, as people say it.

    Example:
        >>> also(["a"]), also(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def when(time: float) -> str:
    """Unix time, here."""
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
