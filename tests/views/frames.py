"""Frames made by hand, for views that need no training."""

from typing import NamedTuple

from stepguard.records import CollapseReading, Event, Reading


class Frame(NamedTuple):
    step: int
    loss: float = 1.0
    accuracy: float = 90.0
    lr: float = 0.1
    reading: Reading | None = None
    events: tuple[Event, ...] = ()


def reading(step, r, scale=1.0, lr=0.1):
    return Reading(step, r, tau=r, rho=1.0, spread=3.14 * r, scale=scale, lr=lr, lr_applied=scale * lr, target=1.0)


def clamped(step, r, **values):
    seen = reading(step, r, scale=1 / r)
    return Frame(step, reading=seen, events=(Event(step, "clamp", f"step {step}: clamped", seen),), **values)


class Epoch(NamedTuple):
    step: int
    loss: float = 1.0
    train_accuracy: float = 50.0
    test_accuracy: float = 5.0
    reading: CollapseReading | None = None
    events: tuple[Event, ...] = ()


def room(step, headroom, collapse=0.0, alignment=None):
    """What a collapse monitor reads where this many nats are left."""
    return CollapseReading(
        step,
        samples=5107,
        collapse=collapse,
        headroom_nats=headroom,
        headroom_min=headroom - 1.0,
        headroom_median=headroom + 3.0,
        dtype="float32",
        classes=113,
        nlm_alignment=alignment,
    )
