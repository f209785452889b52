# shape suffixes: N = samples
from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """The samples of a step on this rank, as one."""

    r: float
    """The quantile of theirs that was asked for."""
    median: float | None = None
    number: int | None = None
    loss: float | None = None
    """Their cross-entropy on average, and that of the one which has most."""
    loss_max: float | None = None


NO_SAMPLES = Samples(math.nan)


def over_samples(spread_N: Tensor, quantile: float, loss_N: Tensor | None = None) -> Samples:
    """What is said of all samples together, with one wait for the device.

    Args:
        spread_N: Spread of the slopes of each.
        quantile: Which counts as the r of all; 1 is the largest.
        loss_N: Cross-entropy of each, if it is known.

    Example:
        >>> [round(r, 3) for r in over_samples(math.pi * torch.tensor([0.1, 0.2, 9.0]), 1.0)[:3]]
        [9.0, 0.2, 3]
    """
    if not len(spread_N):
        return Samples(0.0, number=0)  # the loss ignored every sample
    r = spread_N.max() if quantile == 1 else spread_N.float().quantile(quantile)
    # Of those that are a number: one sample that is not must not speak for all.
    numbers = [r.double(), spread_N.nanmedian().double()]
    if loss_N is not None and len(loss_N):
        numbers += [loss_N.double().mean(), loss_N.double().max()]
    r, median, *losses = torch.stack(numbers).tolist()
    return Samples(r / math.pi, median / math.pi, len(spread_N), *losses)
