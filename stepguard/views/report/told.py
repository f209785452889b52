from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.columns import column
from stepguard.records import Run
from stepguard.views.tensorboard.series import extremes
from stepguard.views.trail import Trail

_MOST = 2000
"""Parts of a run, of each of which the largest r is kept for a chart of text."""


class Told(NamedTuple):
    """A run, and what there is to say of it."""

    run: Run
    post: PostMortem

    @property
    def limit(self) -> float:
        """The target that was in force, or the radius itself where that is unknown."""
        return self.post.about.target if np.isfinite(self.post.about.target) else 1.0

    def trail(self) -> Trail:
        """R over the steps, for a chart of text."""
        step, r, trail = column(self.run.readings, "step"), column(self.run.readings, "r"), Trail()
        r = np.where(np.isnan(r), np.inf, r)
        finite = extremes({"step": step, "r": r}, ["r"], _MOST)
        rows = np.union1d(finite, np.flatnonzero(np.isinf(r))[:_MOST])
        for place in rows.tolist():
            trail.add(int(step[place]), float(r[place]))
        return trail
