from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.track import Numbers, Track

APART = 20
"""Steps without a breach after which the next one begins something new."""
_SURGE = 3.0
"""Times as large as usual that r must be for something new to begin among steps that are beyond."""
_LEAP = 2.0
"""The same of the reading just before: what has grown up to here goes on."""
_BEFORE = 40
"""Readings that tell what is usual."""


class Episode(NamedTuple):
    """Steps beyond the target that belong together, as places in the readings."""

    first: int
    """The first that was beyond."""
    worst: int
    """That with the largest r; not a number is larger than any."""
    last: int
    beyond: int
    """How many were beyond."""


def _surges(r: Numbers, target: Numbers, place: int) -> bool:
    """Whether r is suddenly far above what it was, near its target or beyond it though that may have been."""
    if r[place] < _LEAP * r[place - 1]:  # nearly all of them
        return False
    level = _SURGE * max(float(np.median(r[max(0, place - _BEFORE) : place])), float(target[place]))
    return bool(r[place] >= level and r[max(0, place - APART) : place].max() < level)


def episodes_of(track: Track) -> list[Episode]:
    """What was beyond the target, in the order of steps.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> r = np.array([0.5, 2.0, 2.5, 0.5, 2.0])
        >>> steps = np.array([0.0, 1, 2, 3, 60])
        >>> episodes_of(SimpleNamespace(r=r, step=steps, target=np.ones(5), breach=r > 1))
        [Episode(first=1, worst=2, last=2, beyond=2), Episode(first=4, worst=4, last=4, beyond=1)]
    """
    beyond = np.flatnonzero(track.breach)
    if not len(beyond):
        return []
    size = np.where(np.isnan(track.r), np.inf, track.r)
    surges = [_surges(size, track.target, int(place)) for place in beyond[1:]]
    groups = np.split(beyond, np.flatnonzero((np.diff(track.step[beyond]) > APART) | np.array(surges, dtype=bool)) + 1)
    return [Episode(int(g[0]), int(g[np.argmax(size[g])]), int(g[-1]), len(g)) for g in groups]
