from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from aside_training import train


class Scenario(NamedTuple):
    """A run, and what is known of it because we made it."""

    cause: str
    step: int | None
    """Where the cause begins, from 0: of a ramp its first step, not where it comes too high. None for a healthy run."""
    tolerance: int
    """The first step over the target comes at ``step``, or at most so many steps after it."""
    run: Callable[[Path, int], object]
    """Trains with a seed and leaves records in a folder."""
    breach: bool = True
    """Whether a step goes over the target at all. Where not, the softmax collapses within the tolerance instead."""


def trained(cause, step, tolerance, breach=True, **settings):
    return Scenario(cause, step, tolerance, partial(train, **settings), breach)


def of(kind, **settings):
    """An optimizer for all parameters of a model."""
    return lambda model: kind(model.parameters(), **settings)
