from __future__ import annotations

import numpy as np

from stepguard.diagnosis.episodes import APART
from stepguard.diagnosis.track import Track

_TIMES_ANY = 4.0
_TIMES_USUAL = 8.0
"""Times the largest, and the median, loss of the readings before that the loss of a batch must be to stand out."""
_BEFORE, _LEAST = 40, 10
"""Readings that tell what is usual, and how many there must be."""


def bursts(track: Track) -> list[int]:
    """Places where the loss is suddenly far above any before though r is within its target: batches that are not alike.

    Example:
        >>> from types import SimpleNamespace
        >>> loss, step = np.full(40, 0.3), np.arange(40.0)
        >>> loss[30:33] = 5.0
        >>> bursts(SimpleNamespace(loss=loss, step=step, breach=np.zeros(40, dtype=bool)))
        [30]
    """
    beyond = track.step[track.breach]
    found: list[int] = []
    known = np.flatnonzero(np.isfinite(track.loss))
    rises = np.flatnonzero(track.loss[known[1:]] >= _TIMES_ANY * track.loss[known[:-1]]) + 1
    for i in rises[rises >= _LEAST]:
        before = track.loss[known[max(0, i - _BEFORE) : i]]
        now, step = track.loss[known[i]], track.step[known[i]]
        if now < _TIMES_ANY * before.max() or now < _TIMES_USUAL * np.median(before):
            continue
        if (np.abs(beyond - step) > APART).all() and (not found or step - track.step[found[-1]] > APART):
            found.append(int(known[i]))
    return found
