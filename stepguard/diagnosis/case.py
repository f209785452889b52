from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from stepguard.diagnosis.processes import Setting
from stepguard.diagnosis.track import Numbers, Places, Track

_LATELY = 10
"""Readings that tell what was usual just before."""
_RECENT = 25
"""Steps that are lately, if there were enough readings in them."""
_BEFORE = 40
"""Readings that tell how far what is usual goes."""
_NOT_LONG_AGO = 60
"""Steps that such readings are of, if there were enough in them: a model that learns has other losses then."""
_LONG = 400
"""Readings that a slow change is looked for in."""
_HUMP = 3.0
"""Times as high as at its lowest r must have been before for the rise to have begun after that."""


class Factor(NamedTuple):
    """One of the factors of r, before and at a step.

    Example:
        >>> Factor("learning rate", before=0.01, at=1.0, share=0.9).times
        100.0
    """

    name: str
    before: float
    at: float
    share: float
    """Of the change of log r; the shares of all factors add up to 1."""

    @property
    def times(self) -> float:
        """How many times as large it is."""
        return self.at / self.before if self.before else math.nan


@dataclass(frozen=True)
class Case:
    """A step beyond its target, and what was before it.

    Args:
        track: The readings.
        at: The place of the step among them.
        starts: Places of the first readings of each process after the first.
        hyper: Of the optimizer: its name, and the settings of its first parameter group.
        changes: Of these settings, up to the step.
    """

    track: Track
    at: int
    starts: tuple[int, ...] = ()
    hyper: dict[str, Any] | None = None
    changes: tuple[Setting, ...] = ()

    @property
    def step(self) -> int:
        """Its number."""
        return int(self.track.step[self.at])

    @cached_property
    def lately(self) -> Places:
        """Places of the last readings before it, those within their target if there are any."""
        places = self._calm(_LATELY)
        near = places[self.track.step[places] >= self.step - _RECENT]
        return near if len(near) >= 3 else places[-3:]

    @cached_property
    def before(self) -> Places:
        """Places of readings further back, up to it."""
        places = self._calm(_BEFORE)
        near = places[self.track.step[places] >= self.step - _NOT_LONG_AGO]
        return near if len(near) >= 5 else places[-5:]

    @cached_property
    def since(self) -> int:
        """Place from which on r has grown up to here, at its lowest over a few readings since it was last as high."""
        places = self._calm(_LONG)
        if not len(places):
            return self.at
        back = _smooth(self.track.r[places])[::-1]
        risen = np.flatnonzero(back > _HUMP * np.minimum.accumulate(back))
        back = back[: risen[0]] if len(risen) else back
        return int(places[len(places) - 1 - int(np.argmin(back))])

    def _calm(self, most: int) -> Places:
        places = np.arange(max(0, self.at - 3 * most), self.at)
        r, target = self.track.r[places], self.track.target[places]
        with np.errstate(invalid="ignore"):
            calm = places[r <= target]
        finite = places[np.isfinite(r)]
        return (calm if len(calm) >= 2 else finite)[-most:]

    def now(self, name: str) -> float:
        """What it is at the step."""
        return float(getattr(self.track, name)[self.at])

    def usual(self, name: str, places: Places | None = None) -> float:
        """What it was before, in the middle; nan if that is unknown."""
        values = getattr(self.track, name)[self.lately if places is None else places]
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else math.nan

    def most(self, name: str) -> float:
        """The largest that it was before; nan if that is unknown."""
        values = getattr(self.track, name)[self.before]
        known = values[np.isfinite(values)]
        return float(known.max()) if len(known) else math.nan

    def grown(self, name: str) -> float:
        """How many times as large it is as lately."""
        usual = self.usual(name)
        return self.now(name) / usual if usual else math.nan

    def settled(self, name: str) -> float:
        """What it is about the step, in the middle of a few readings: one that is beyond by luck says little."""
        track = self.track
        places = np.arange(max(0, self.at - 2), min(len(track), self.at + 3))
        places = places[np.abs(track.step[places] - self.step) <= 5]
        values = getattr(track, name)[places]
        known = values[np.isfinite(values)]
        return float(np.median(known)) if len(known) else math.nan

    def leapt(self, name: str) -> float:
        """How many times as large it is as in the reading before."""
        before = float(getattr(self.track, name)[self.at - 1]) if self.at else math.nan
        return self.now(name) / before if before else math.nan

    def grown_since(self, name: str) -> float:
        """How many times as large it is as where r began to grow."""
        before = self.usual(name, self.around(self.since))
        return self.settled(name) / before if before else math.nan

    def grown_from_the_start(self, name: str) -> float:
        """How many times as large it is as in the first steps of the run."""
        before = self.usual(name, np.arange(min(3, self.at)))
        return self.now(name) / before if before else math.nan

    @property
    def sudden(self) -> bool:
        """Whether r has at least doubled from the last few readings to this one."""
        return bool(len(self.lately)) and not self.now("r") < 2 * self.usual("r", self.lately[-3:])

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """What r is made of, before and now: before is lately where it was sudden, else where r began to grow."""
        return self._factors(self.lately if self.sudden else self.around(self.since))

    def factors_since(self, step: int) -> tuple[Factor, ...]:
        """The same, where before is just before another step; after the first ones if nothing is before that."""
        place = int(np.searchsorted(self.track.step, step))
        places = np.arange(max(0, place - 4), place) if place else np.arange(min(3, self.at))
        return self._factors(places) if len(places) else self.factors

    def _factors(self, places: Places) -> tuple[Factor, ...]:
        known = not math.isnan(self.now("gradient") * self.usual("gradient", places))
        columns = {"learning rate": "lr", "gradient": "gradient", "gain": "gain"}
        if not known:
            columns = {"learning rate": "lr", "update per learning rate": "pull"}
        columns["sensitivity"] = "sensitivity"
        logs = {name: self._log_grown(column, places) for name, column in columns.items()}
        whole = sum(log for log, _, _ in logs.values())
        return tuple(
            Factor(name, before, now, log / whole if whole else math.nan) for name, (log, before, now) in logs.items()
        )

    def share(self, *names: str) -> float:
        """The share of these factors in the growth of r; 0 if unknown."""
        return sum(f.share for f in self.factors if f.name in names and math.isfinite(f.share))

    def around(self, place: int) -> Places:
        """A place and its neighbours, up to the step."""
        return np.arange(max(0, place - 2), min(place + 3, self.at))

    def _log_grown(self, column: str, places: Places) -> tuple[float, float, float]:
        # Means of logarithms, so that those of the factors add up to that of their product.
        values = getattr(self.track, column)[places]
        known = values[np.isfinite(values) & (values > 0)]
        before = float(np.exp(np.mean(np.log(known)))) if len(known) else math.nan
        now = self.now(column)
        log = math.log(now / before) if now > 0 and before > 0 and math.isfinite(now) else 0.0
        return log, before, now


def _smooth(values: Numbers) -> Numbers:
    """The median of each value and its neighbours."""
    if len(values) < 5:
        return values
    padded = np.concatenate([values[:1].repeat(2), values, values[-1:].repeat(2)])
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, 5), axis=1))
