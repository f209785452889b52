from __future__ import annotations

from collections.abc import Iterator, Sequence

from stepguard.records import Event
from stepguard.views.frame import CollapseFrame

FITTED, GENERALISED = 99.9, 98.0
"""Accuracy in percent, on the training and on the test pairs, from which a run counts as having got there."""


def first_epoch(accuracies: Sequence[float], limit: float) -> int | None:
    """The first epoch, counted from 0, whose accuracy reaches the limit.

    Example:
        >>> first_epoch([10.0, 60.0, 40.0], 50.0), first_epoch([10.0], 50.0)
        (1, None)
    """
    return next((epoch for epoch, accuracy in enumerate(accuracies) if accuracy >= limit), None)


def milestones(before: Sequence[CollapseFrame], frame: CollapseFrame) -> Iterator[Event]:
    """Events where a run is first right about the training pairs, and where about the others."""
    if frame.train_accuracy >= FITTED and all(f.train_accuracy < FITTED for f in before):
        yield Event(frame.step, "fitted", f"epoch {frame.step}: train {frame.train_accuracy:.1f}%")
    if frame.test_accuracy >= GENERALISED and all(f.test_accuracy < GENERALISED for f in before):
        yield Event(frame.step, "generalised", f"epoch {frame.step}: test {frame.test_accuracy:.1f}%")
