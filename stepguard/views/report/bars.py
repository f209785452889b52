from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉"


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
    unit = width / (most - least) if most > least else 0.0
    zero = round(-least * unit)
    found = []
    for value in values:
        if value < 0:
            long = max(round(-value * unit), int(-value * unit > 0.05))
            found.append(" " * (zero - long) + ("-" if ascii_only else "▒") * long)
        else:
            found.append(" " * zero + _to_the_right(value * unit, ascii_only))
    return found


def _to_the_right(length: float, ascii_only: bool) -> str:
    if ascii_only:
        return "#" * round(length)
    eighths = round(8 * length)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
