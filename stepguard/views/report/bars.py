from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LITTLE = 1e-6
"""Share of all that is less than can be seen, as rounding leaves it."""


def bars(values: Sequence[float], width: int, ascii_only: bool = False) -> list[str]:
    """Numbers as bars of text, from a common zero; those below it go to the left, in a lighter shade.

    Args:
        values: The numbers.
        width: Characters that there are.
        ascii_only: Without the letters that divide a character.

    Example:
        >>> bars([4.0, 1.0, -2.0], 6)
        ['  ████', '  █', '▒▒']
    """
    most, least = max([*values, 0.0]), min([*values, 0.0])
    span = most - least
    # What is below zero has a letter at least, and what is above the rest.
    zero = 0 if least >= -_LITTLE * span else min(max(round(-least / span * width), 1), width - (most > 0))
    found = []
    for value in values:
        if value < -_LITTLE * span:
            long = max(round(value / least * zero), 1)
            found.append(" " * (zero - long) + ("-" if ascii_only else "▒") * long)
        else:
            length = value / most * (width - zero) if most > 0 else 0.0
            found.append(" " * zero + _to_the_right(max(length, 0.0), ascii_only))
    return [bar.rstrip() for bar in found]


def _to_the_right(length: float, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(length)
    eighths = round(8 * length)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
