# shape suffixes: N = samples
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stepguard.probe.seen_softmax import SeenSoftmax


class Summary(NamedTuple):
    """All softmaxes of one step together; shares lie between 0 and 1, headroom is in nats."""

    samples: int
    collapse: float
    zero_terms: float | None
    zero_gradients: float | None
    headroom: float
    headroom_min: float
    headroom_median: float
    logit_norm: float
    dtype: str
    classes: int


def summary(seen: Sequence[SeenSoftmax], quantile: float) -> Summary | None:
    """Sum them up, with one wait for the device; None if no sample counts."""
    counts = [s.counts_N() for s in seen]

    def all_of(pick: Callable[[SeenSoftmax], Tensor | None]) -> Tensor | None:
        parts = [pick(s) for s in seen]
        counted = [
            p[c].to(counts[0].device, torch.float32) for p, c in zip(parts, counts, strict=True) if p is not None
        ]
        return torch.cat(counted) if counted else None

    headroom_N = all_of(lambda s: s.near.headroom_N) if seen else None
    if headroom_N is None or not len(headroom_N):
        return None
    means = [
        all_of(pick)
        for pick in (
            lambda s: s.near.collapsed_N,
            lambda s: s.norm_N,
            lambda s: s.near.zero_loss_N,
            lambda s: s.zero_gradient_N,
        )
    ]
    ordered_N = headroom_N.sort().values  # torch.quantile takes no more than 16 million
    picked = ordered_N[[int(q * (len(ordered_N) - 1)) for q in (quantile, 0.0, 0.5)]]
    numbers = iter(torch.cat([picked, *(m.mean().reshape(1) for m in means if m is not None)]).tolist())
    headroom, headroom_min, headroom_median = (next(numbers) for _ in range(3))
    collapse, norm, zero_terms, zero_gradients = (None if m is None else next(numbers) for m in means)
    assert collapse is not None and norm is not None
    return Summary(
        samples=len(headroom_N),
        collapse=collapse,
        zero_terms=zero_terms,
        zero_gradients=zero_gradients,
        headroom=headroom,
        headroom_min=headroom_min,
        headroom_median=headroom_median,
        logit_norm=norm,
        dtype=", ".join(sorted({str(s.dtype).removeprefix("torch.") for s in seen})),
        classes=max(s.classes for s in seen),
    )


def merged(parts: Sequence[Summary]) -> Summary | None:
    """Several as one: means are those of all samples, of a quantile of headroom the smallest counts.

    Example:
        >>> one = Summary(1, 0.0, None, None, 5.0, 5.0, 5.0, 2.0, "float32", 10)
        >>> both = merged([one, one._replace(samples=3, collapse=1.0, headroom=-1.0)])
        >>> both.samples, both.collapse, both.headroom
        (4, 0.75, -1.0)
    """
    if not parts:
        return None

    def mean(values: Sequence[float | None]) -> float | None:
        known = [(p.samples, v) for p, v in zip(parts, values, strict=True) if v is not None]
        return sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None

    samples, collapse, zero_terms, zero_gradients, headroom, lowest, median, norm, dtypes, classes = zip(
        *parts, strict=True
    )
    return Summary(
        samples=sum(samples),
        collapse=mean(collapse) or 0.0,
        zero_terms=mean(zero_terms),
        zero_gradients=mean(zero_gradients),
        headroom=min(headroom),
        headroom_min=min(lowest),
        headroom_median=mean(median) or 0.0,
        logit_norm=mean(norm) or 0.0,
        dtype=", ".join(sorted({d for both in dtypes for d in both.split(", ")})),
        classes=max(classes),
    )
