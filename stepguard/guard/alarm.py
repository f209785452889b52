from __future__ import annotations

import math
from typing import Literal

import torch

from stepguard.records import CollapseReading, Event

Level = Literal["calm", "warned", "collapsed"]
_LOW = 0.4
"""Share of the headroom that a dtype has, below which a forecast is believed: above it logits grow fast and then slow
down, so that a straight line would cry wolf."""
_FAR = 0.5
"""Share from which on collapse is far again."""


class Alarm:
    """Says when softmax collapse comes near, when it is there, and when it is far again; each once.

    Args:
        headroom: Nats below which it is near.
        horizon: Steps within which a forecast makes it near.

    Attributes:
        level: What it has said last.
    """

    def __init__(self, headroom: float, horizon: int):
        self._headroom, self._horizon = headroom, horizon
        self.level: Level = "calm"

    def judge(self, reading: CollapseReading) -> list[Event]:
        """What there is to say of a reading."""
        events = []
        if self.level == "calm" and self._is_near(reading):
            self.level = "warned"
            events.append(Event(reading.step, "warning", _warning(reading), reading))
        if self.level == "warned" and reading.collapsed:
            self.level = "collapsed"
            events.append(Event(reading.step, "onset", _onset(reading), reading))
        # Farther than it can be said to be near at all, whatever the forecast: that wavers, and a cure would with it.
        if self.level != "calm" and reading.headroom_nats > max(2 * self._headroom, _FAR * _most(reading)):
            self.level = "calm"
            message = f"step {reading.step}: headroom is back at {reading.headroom_nats:.1f} nats"
            events.append(Event(reading.step, "recovery", message, reading))
        return events

    def _is_near(self, reading: CollapseReading) -> bool:
        if reading.headroom_nats < self._headroom:
            return True
        soon = reading.steps_left is not None and reading.steps_left < self._horizon
        return soon and reading.headroom_nats < _LOW * _most(reading)


def _most(reading: CollapseReading) -> float:
    """Nats by which one class may be ahead of another, in the coarsest of the dtypes."""
    return min(-math.log(torch.finfo(getattr(torch, dtype)).eps / 2) for dtype in reading.dtype.split(", "))


def _warning(reading: CollapseReading) -> str:
    message = (
        f"step {reading.step}: softmax collapse is near: one sample in a hundred has less than "
        f"{max(reading.headroom_nats, 0.0):.1f} nats left ({reading.dtype}, {_classes(reading)})"
    )
    if reading.forecast is not None and not reading.collapsed:
        message += f", {-(reading.trend or 0):.2g} less with each step: it starts at about step {reading.forecast:.0f}"
    if reading.nlm_alignment is not None and reading.nlm_alignment > 0.1:
        message += f"; the gradient is {100 * reading.nlm_alignment:.0f}% along the weights"
    return message


def _onset(reading: CollapseReading) -> str:
    message = f"step {reading.step}: the softmax has collapsed for {reading.collapse:.2%} of the samples"
    if reading.zero_gradients is not None:
        message += f"; {reading.zero_gradients:.2%} teach their true class nothing any more"
    return message


def _classes(reading: CollapseReading) -> str:
    return f"{reading.classes} classes" if reading.classes > 1 else "binary"
