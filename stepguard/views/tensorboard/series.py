"""Down-sampling that keeps extremes: a million readings as the few thousand points that a chart can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Table = Mapping[str, Numbers]
"""Columns by name, ``step`` among them, in the order of steps."""


def visible(step: Numbers, first: float, last: float) -> slice:
    """What is from ``first`` to ``last``, and one more on either side, so that lines go to the edge.

    Example:
        >>> visible(np.arange(10.0), 3.0, 5.5)
        slice(2, 7, None)
    """
    low, high = np.searchsorted(step, first, "left"), np.searchsorted(step, last, "right")
    return slice(max(0, int(low) - 1), min(len(step), int(high) + 1))


def extremes(table: Table, names: Sequence[str], buckets: int) -> NDArray[np.intp]:
    """Which rows to show: of each bucket of steps the smallest and the largest of every column, and both ends.

    Args:
        table: Columns by name.
        names: Those whose extremes matter; what is not finite is none.
        buckets: Into how many equal parts the steps are divided. All rows come back if there are not more.

    Example:
        >>> table = {"step": np.arange(6.0), "r": np.array([1.0, 9.0, 2.0, 3.0, 0.0, 4.0])}
        >>> extremes(table, ["r"], 2)
        array([0, 1, 4, 5])
    """
    step = table["step"]
    if len(step) <= buckets:
        return np.arange(len(step))
    share = (step - step[0]) / max(step[-1] - step[0], 1.0)
    bucket = np.minimum((share * buckets).astype(np.intp), buckets - 1)
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    counts = np.diff(starts, append=len(step))
    found = [np.array([0, len(step) - 1])]
    for name in names:
        column = np.where(np.isfinite(table[name]), table[name], np.nan)
        for best in (np.fmin.reduceat(column, starts), np.fmax.reduceat(column, starts)):
            same = np.flatnonzero(column == np.repeat(best, counts))
            found.append(same[np.flatnonzero(np.diff(bucket[same], prepend=-1))])  # the first in each bucket
    return np.unique(np.concatenate(found))


def breaches(r: Numbers, target: Numbers) -> NDArray[np.bool_]:
    """Which are :attr:`stepguard.Reading.breach`.

    Example:
        >>> breaches(np.array([0.5, 3.0, np.nan, 3.0, np.inf]), np.array([1.0, 1.0, 1.0, np.nan, np.nan]))
        array([False,  True,  True, False,  True])
    """
    return ~(r <= np.where(np.isnan(target), np.finfo(float).max, target))


def marks(table: Table, most: int) -> list[tuple[float, float, float, int]]:
    """Every reading beyond its target, as ``(step, r, scale, how many)``: one each, if they are not too many.

    Beyond ``most`` those that are next to one another and had the same done to them are drawn together, at the
    largest of them; an r that is no number counts as the largest of all. Their number stays what it is.

    Args:
        table: With ``step``, ``r``, ``scale`` and ``target``.
        most: How many marks at most, about.

    Example:
        >>> table = {"step": np.arange(3.0), "r": np.array([0.5, 3.0, 2.0]), "scale": np.array([1.0, 0.2, 0.2]),
        ...          "target": np.ones(3)}
        >>> marks(table, 5), marks(table, 1)
        ([(1.0, 3.0, 0.2, 1), (2.0, 2.0, 0.2, 1)], [(1.0, 3.0, 0.2, 2)])
    """
    beyond = np.flatnonzero(breaches(table["r"], table["target"]))
    step, r, scale = (table[name][beyond] for name in ("step", "r", "scale"))
    if len(beyond) <= most:
        return [(*mark, 1) for mark in zip(step.tolist(), r.tolist(), scale.tolist(), strict=True)]
    done = (scale == 0) * 2 + (scale == 1) + np.isnan(scale) * 3  # withheld, let through, unknown, or shortened
    share = (step - step[0]) / max(step[-1] - step[0], 1.0)
    key = np.minimum((share * most / 4).astype(np.intp), most) * 4 + done
    order = np.lexsort((np.where(np.isnan(r), np.inf, r), key))
    ends = np.append(np.flatnonzero(np.diff(key[order])), len(order) - 1)
    counts = np.diff(ends, prepend=-1)
    top = order[ends]
    kept = zip(step[top].tolist(), r[top].tolist(), scale[top].tolist(), counts.tolist(), strict=True)
    return sorted(kept, key=lambda mark: mark[0])


def plain(column: Numbers) -> list[Any]:
    """As JSON can have it: None for what is not finite."""
    pairs = zip(column.tolist(), np.isfinite(column).tolist(), strict=True)
    return [value if finite else None for value, finite in pairs]
