from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from stepguard.diagnosis.columns import column, last_known
from stepguard.records import Run

BITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Powers of two below 1 from which on a term added to 1 is lost."""
ALONG = 0.7
"""Alignment from which on a step is mostly a scaling of the weights."""


class Wider(NamedTuple):
    """What another dtype would have left, in nats."""

    dtype: str
    lowest: float
    last: float


class Softmax(NamedTuple):
    """How near the softmax came to collapse, as far as a monitor looked. Headroom is in nats."""

    looks: int
    samples: int
    classes: int
    dtype: str
    first: float
    lowest: float
    lowest_step: int
    last: float
    last_step: int
    collapsed: float
    """Share of the samples at the last look."""
    collapsed_most: float
    collapsed_most_step: int
    trend: float | None
    forecast: float | None
    """Step at which collapse would begin, as it was at the last look."""
    wider: tuple[Wider, ...]
    alignment: float
    """Cosine of -gradient with the weights, in the middle of the last half of the looks; nan if unknown."""
    logit_norm: tuple[float, float]
    """At the first look and at the last."""
    curing: float
    """Share of the looks at which perpGrad was on."""

    @property
    def scales(self) -> bool:
        """Whether the run mostly scales its weights, as naive loss minimisation does."""
        return self.alignment >= ALONG

    @property
    def falls(self) -> bool:
        """Whether headroom was going down when it was last looked at."""
        return self.trend is not None and self.trend < 0


def softmax(run: Run) -> Softmax | None:
    """What a collapse monitor has seen; None where nobody looked.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.records import CollapseReading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> run.collapses.append(CollapseReading(0, 64, 0.0, 2.0, 1.0, 5.0, "float16", 10))
        >>> [(wider.dtype, round(wider.last, 1)) for wider in softmax(run).wider]
        [('float32', 11.0), ('float64', 31.1)]
    """
    rows = run.collapses
    if not len(rows):
        return None
    step, headroom, share = (column(rows, name) for name in ("step", "headroom_nats", "collapse"))
    known = np.isfinite(headroom)
    if not known.any():
        return None
    lowest = int(np.nanargmin(np.where(known, headroom, np.nan)))
    most = int(np.nanargmax(np.where(np.isfinite(share), share, -1.0)))
    last = rows[-1]
    alignment, norm = column(rows, "nlm_alignment"), column(rows, "logit_norm")
    later = alignment[len(alignment) // 2 :]
    later = later[np.isfinite(later)]
    norms = norm[np.isfinite(norm)]
    return Softmax(
        looks=len(rows),
        samples=last.samples,
        classes=last.classes,
        dtype=last.dtype,
        first=float(headroom[known][0]),
        lowest=float(headroom[lowest]),
        lowest_step=int(step[lowest]),
        last=last_known(headroom),
        last_step=int(step[-1]),
        collapsed=last_known(share),
        collapsed_most=float(share[most]),
        collapsed_most_step=int(step[most]),
        trend=last.trend,
        forecast=last.forecast,
        wider=_wider(last.dtype, float(headroom[lowest]), last_known(headroom)),
        alignment=float(np.median(later)) if len(later) else math.nan,
        logit_norm=(float(norms[0]), float(norms[-1])) if len(norms) else (math.nan, math.nan),
        curing=sum(map(bool, rows.columns["curing"])) / len(rows),
    )


def _wider(dtype: str, lowest: float, last: float) -> tuple[Wider, ...]:
    names = dtype.split(", ")
    if not all(name in BITS for name in names):
        return ()
    bits = min(BITS[name] for name in names)
    more = {name: (other - bits) * math.log(2) for name, other in BITS.items() if other > max(bits, BITS["float16"])}
    return tuple(Wider(name, lowest + nats, last + nats) for name, nats in more.items())
