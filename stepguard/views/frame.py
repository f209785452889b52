from __future__ import annotations

import math
from typing import Protocol

from stepguard.records import Event, Reading


class Frame(Protocol):
    """One run after one step, as every view takes it; accuracy in percent."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102
    @property
    def accuracy(self) -> float: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def reading(self) -> Reading | None: ...  # noqa: D102
    @property
    def events(self) -> tuple[Event, ...]: ...  # noqa: D102


def r_asked(frame: Frame) -> float:
    """The r of the step the optimizer asked for; nan where nothing was measured."""
    return frame.reading.r if frame.reading else math.nan


def r_taken(frame: Frame) -> float:
    """The r of the step that was really made, scale * r; nan where nothing was measured."""
    if frame.reading is None:
        return math.nan
    # A withheld step was not made, however far from finite it was asked for.
    return frame.reading.r * frame.reading.scale if frame.reading.scale else 0.0


def lr_applied(frame: Frame) -> float:
    """The learning rate whose step was really made; a step that was not measured stands as asked."""
    return frame.reading.lr_applied if frame.reading else frame.lr
