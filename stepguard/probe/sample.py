from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stepguard.probe.softmax import MASKED, Softmax


class Sample(NamedTuple):
    """One sample of a softmax, and the two classes between which its slopes spread."""

    softmax: int
    """Which of the softmaxes of a batch."""
    position: tuple[int, ...]
    """Where it is in the logits, classes left out."""
    shape: tuple[int, ...]
    """Of all the samples."""
    rising: int
    """The class with the largest slope."""
    falling: int
    """The class with the smallest."""
    spread: float
    label: int | None
    """The class that it should be of, where the loss names one."""


def sample_of(
    softmaxes: Sequence[Softmax],
    index: int,
    counted: int,
    pieces: Callable[[Softmax], Iterable[tuple[Tensor, Tensor]]],
) -> Sample:
    """Look at one sample.

    Args:
        softmaxes: Of a batch.
        index: Which of them.
        counted: Which of its samples that count.
        pieces: From it to logits and their slopes, a few classes at a time, classes last.

    Example:
        >>> z, a = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [5.0, 0.0, 1.0]])
        >>> sample = sample_of([Softmax(z, counted=torch.tensor([False, True]))], 0, 0, lambda s: [(z, a)])
        >>> sample.position, sample.rising, sample.falling, sample.spread
        ((1,), 0, 1, 5.0)
    """
    softmax = softmaxes[index]
    size = list(softmax.logits.shape)
    del size[softmax.class_dim]
    shape = torch.Size(size)
    flat = counted if softmax.counted is None else int(softmax.counted.flatten().nonzero()[counted])
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), shape)) if shape else ()
    rows = [(z[position], a[position]) for z, a in pieces(softmax)]
    z_C, a_C = (torch.cat(parts) for parts in zip(*rows, strict=True))
    masked = (z_C < z_C.max() - MASKED) | z_C.isneginf()
    rising, falling = (
        int(a_C.masked_fill(masked, -math.inf).argmax()),
        int(a_C.masked_fill(masked, math.inf).argmin()),
    )
    label = softmax.labels[position] if softmax.labels is not None and softmax.labels.shape == shape else None
    return Sample(
        index,
        position,
        tuple(shape),
        rising,
        falling,
        float(a_C[rising] - a_C[falling]),
        None if label is None else int(label),
    )
