from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

from stepguard.records.collapse import CollapseReading


class Reading(NamedTuple):
    """What was measured at one optimizer step, and what was done about it. Plain values, JSON-able.

    Lengths (``tau``, ``rho``) are in the parameters' own unit, the Euclidean norm over everything the
    optimizer moves; ``r`` and ``scale`` have none. A step that was not finite has ``nan`` for what
    could not be measured.

    Example:
        >>> Reading(step=3, r=2.0, tau=4.0, rho=2.0, spread=6.28, scale=0.5, lr=0.1, lr_applied=0.05,
        ...         target=1.0).breach
        True
    """

    step: int
    """Optimizer steps before this one, from 0."""
    r: float
    """Normalized step ratio tau / rho of the update the optimizer asked for."""
    tau: float
    """Length of that update."""
    rho: float
    """Radius pi / Delta_a along it: the longest reliable step in this direction."""
    spread: float
    """Largest spread over the batch of the logits' change by the whole update, in nats (pi * r)."""
    scale: float
    """Factor by which the update was multiplied: 1 untouched, 0 withheld."""
    lr: float
    """Learning rate asked for, the largest of the parameter groups."""
    lr_applied: float
    """``scale * lr``: the rate whose step was really made."""
    target: float
    """Limit on r that was in force; nan in a run made of scalars that do not tell it."""
    estimator: str = "forward"
    """How the slopes were taken: ``"forward"`` mode, or finite ``"difference"`` where that cannot be relied on; by a
    ``"secant"``, a few percent off, where that is enough; or a ``"prediction"`` instead, where a step that nobody
    expected to be long came unwatched."""
    cost_share: float | None = None
    """stepguard's share of the time since the previous reading; None at the first."""
    why: str = "told"
    """Why it was measured: ``"told"`` to, a ``"first"`` step, ``"near"`` the limit, or the last one was ``"old"``."""
    gradient_norm: float | None = None
    """Norm of the gradients that the optimizer was given, clipped ones clipped; not finite where they were not, and
    withheld. None where it is not known: a GradScaler's fused optimizer, or a sharded model that is only observed."""
    weight_norm: float | None = None
    """Norm of all that the optimizer moves, before this step. None where the model is sharded."""
    r_median: float | None = None
    """The r of half of this process's samples or tokens is not larger: far below ``r``, one of them stands out. None
    where ``r`` is a prediction, or nothing could be measured."""
    samples: int | None = None
    """How many samples or tokens those are."""
    loss: float | None = None
    """Cross-entropy of them before the step, on average, in nats; None where the loss names no classes."""
    loss_max: float | None = None
    """That of the sample which has most: near ``samples * loss``, one of them has all of it."""
    collapse: float | None = None
    """Share of them whose softmax sum is exactly 1, where the loss takes it in half precision; a collapse monitor tells
    more, and of any dtype."""
    inputs: int | None = None
    """How many inputs the model was given, where it is given floats; also known where ``r`` is a prediction."""
    input_norm: float | None = None
    """Euclidean norm of the input that half of them are not larger than, in the data's own unit."""
    input_norm_max: float | None = None
    """That of the largest."""
    lrs: list[float | None] | None = None
    """Learning rate asked for, of each parameter group; None where there is only one."""
    lr_before: float | None = None
    """Learning rate of the step before this one, measured or not: the largest of the groups. None at the first."""
    tau_before: float | None = None
    """Length of its update, as the optimizer asked for it."""

    @property
    def breach(self) -> bool:
        """Whether r passed the target, or is not a number; of a target that is not known, whether r is not finite."""
        return not self.r <= (sys.float_info.max if math.isnan(self.target) else self.target)

    @property
    def lr_safe(self) -> float | None:
        """The largest learning rate whose step would have kept to the target: ``lr * target / r``; None if unknown."""
        known = 0 < self.r < math.inf and self.lr > 0 and not math.isnan(self.target)
        return self.lr * self.target / self.r if known else None

    def as_dict(self) -> dict[str, Any]:
        """Field names to values, for JSON."""
        return self._asdict()


class Event(NamedTuple):
    """Something that happened at a step and that a person may want to read about.

    ``kind`` is one of ``breach`` (beyond the target and let through, in observe), ``clamp`` (made
    shorter), ``held`` (made shorter for many steps in a row),
    ``forecast`` (r will come to its target), ``withheld`` (not finite, not made),
    ``skipped`` (the optimizer moved nothing), ``found`` (what r is taken of, and how, when that is new),
    ``fallback`` (slopes are taken by another estimator from here on, and why) and ``unmeasured`` (training went on
    without a reading; the message says why), ``caution`` (the optimizer is one whose clamped steps have a sequel),
    ``changed`` (a setting of the optimizer is another than before; ``data`` has ``group, name, before, now``),
    ``culprit`` (where the r of a breach comes from; ``data`` has the fields of a :class:`Culprit`).
    From a collapse monitor also ``warning`` (softmax collapse is near), ``onset`` (it is there), ``recovery`` (it is
    far again), ``cure_on`` and ``cure_off`` (perpGrad was switched) and ``stop`` (training was asked to end).
    """

    step: int
    kind: str
    message: str
    reading: Reading | CollapseReading | None = None
    data: dict[str, Any] | None = None
    """What it says, in numbers, JSON-able."""


def breach_event(reading: Reading) -> Event:
    """What to tell of a reading beyond its target, from what was done about it."""
    back = "back to calm, " if reading.scale * reading.r < 0.99 * reading.target else ""
    kind = {0.0: "withheld", 1.0: "breach"}.get(reading.scale, "clamp")
    done = {
        "withheld": "not finite, so the step was withheld and the parameters kept",
        "breach": "observed only, the step was made",
        "clamp": f"{back}scaled by {reading.scale:.3g}, lr {reading.lr:.3g} -> {reading.lr_applied:.3g}",
    }[kind]
    message = (
        f"step {reading.step}: r = {reading.r:.3g} (target {reading.target:g}), tau = {reading.tau:.3g}, "
        f"rho = {reading.rho:.3g}: {done}"
    )
    return Event(reading.step, kind, message, reading)
