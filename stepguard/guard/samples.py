# shape suffixes: N = samples
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stepguard.probe import Look


class Samples(NamedTuple):
    """The samples of a step on this rank, as one."""

    r: float
    """The quantile of theirs that was asked for."""
    median: float | None = None
    number: int | None = None
    loss: float | None = None
    """Their cross-entropy on average, and that of the one which has most."""
    loss_max: float | None = None
    collapse: float | None = None
    """Share of them whose softmax has collapsed, in half precision."""


NO_SAMPLES = Samples(math.nan)
NOT_LOOKED = Look()


def over_samples(spread_N: Tensor, quantile: float, looked: Look = NOT_LOOKED) -> Samples:
    """What is said of all samples together, with one wait for the device.

    Args:
        spread_N: Spread of the slopes of each.
        quantile: Which counts as the r of all; 1 is the largest.
        looked: What they are like.

    Example:
        >>> [round(r, 3) for r in over_samples(math.pi * torch.tensor([0.1, 0.2, 9.0]), 1.0)[:3]]
        [9.0, 0.2, 3]
    """
    if not len(spread_N):
        return Samples(0.0, number=0)  # the loss ignored every sample
    r = spread_N.max() if quantile == 1 else spread_N.float().quantile(quantile)
    # Of those that are a number: one sample that is not must not speak for all.
    numbers = {"r": r, "median": spread_N.nanmedian()}
    if looked.loss_N is not None and len(looked.loss_N):
        numbers |= {"loss": looked.loss_N.mean(), "loss_max": looked.loss_N.max()}
    if looked.collapsed_N is not None and len(looked.collapsed_N):
        numbers["collapse"] = looked.collapsed_N.double().mean()
    found = dict(zip(numbers, torch.stack([n.double() for n in numbers.values()]).tolist(), strict=True))
    found |= {name: found[name] / math.pi for name in ("r", "median")}
    return Samples(number=len(spread_N), **found)
