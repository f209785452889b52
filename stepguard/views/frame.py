from __future__ import annotations

import math
from typing import Protocol

from stepguard.records import CollapseReading, Event, Reading


class Frame(Protocol):
    """One run after one step, as every view takes it."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102
    @property
    def events(self) -> tuple[Event, ...]: ...  # noqa: D102


class StepFrame(Frame, Protocol):
    """A frame of a run whose steps are measured; accuracy in percent."""

    @property
    def accuracy(self) -> float: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def reading(self) -> Reading | None: ...  # noqa: D102


def r_asked(frame: StepFrame) -> float:
    """The r of the step the optimizer asked for; nan where nothing was measured."""
    return frame.reading.r if frame.reading else math.nan


def r_taken(frame: StepFrame) -> float:
    """The r of the step that was really made, scale * r; nan where nothing was measured."""
    if frame.reading is None:
        return math.nan
    # A withheld step was not made, however far from finite it was asked for.
    return frame.reading.r * frame.reading.scale if frame.reading.scale else 0.0


def lr_applied(frame: StepFrame) -> float:
    """The learning rate whose step was really made; a step that was not measured stands as asked."""
    return frame.reading.lr_applied if frame.reading else frame.lr


class CollapseFrame(Frame, Protocol):
    """A frame of a run whose softmax is watched; accuracies in percent."""

    @property
    def train_accuracy(self) -> float: ...  # noqa: D102
    @property
    def test_accuracy(self) -> float: ...  # noqa: D102
    @property
    def reading(self) -> CollapseReading | None: ...  # noqa: D102


def collapsed(frame: CollapseFrame) -> float:
    """Percent of the samples whose softmax has collapsed; nan where nothing was measured."""
    return 100 * frame.reading.collapse if frame.reading else math.nan


def headroom(frame: CollapseFrame) -> float:
    """Nats until collapse reaches one sample in a hundred, negative beyond; nan where nothing was measured."""
    return frame.reading.headroom_nats if frame.reading else math.nan


def alignment(frame: CollapseFrame) -> float:
    """Cosine of -grad with the weights, before perpGrad; nan where nothing was measured."""
    cosine = frame.reading.nlm_alignment if frame.reading else None
    return math.nan if cosine is None else cosine
