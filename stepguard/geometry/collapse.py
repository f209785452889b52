# shape suffixes: N = samples, C = classes, K = samples looked at closely
from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 2**22
"""Logits that are looked at together: what is made of them takes some ten times their memory."""
_SLACK = 0.1
"""Nats by which the rounding of logits and of exp may move where absorption starts."""
_NARROW = 2e-3
"""Nats to which headroom is found."""


class SoftmaxCollapse(NamedTuple):
    """How near the samples of a batch are to softmax collapse, ``[N]`` each."""

    collapsed_N: Tensor
    """True where the softmax's sum is exactly 1 in its dtype: every other class has been absorbed."""
    headroom_N: Tensor
    """Nats by which the other logits may still fall behind the largest until that happens; negative beyond."""
    zero_loss_N: Tensor | None = None
    """True where the cross-entropy is exactly 0; None without targets."""


def softmax_collapse(
    logits: Tensor, target: Tensor | None = None, *, ignore_index: int = -100, dtype: torch.dtype | None = None
) -> SoftmaxCollapse:
    r"""How near a softmax is to collapse, sample by sample.

    Softmax collapse (arXiv 2501.04697, section 3): where the largest logit is so far ahead that
    :math:`\sum_k e^{z_k - \max z}` is exactly 1 in floating point, loss and gradient lose what is left to learn.
    When that happens depends on dtype and classes, and on the order in which PyTorch adds them on this device,
    so the headroom is found by trying, with that very sum.

    Args:
        logits: ``[..., C]``.
        target: Class indices ``[...]``.
        ignore_index: Samples with this target do not count.
        dtype: In which the loss takes its softmax; None is the logits' own.

    Returns:
        Of the samples that count, in order. One for which a single class is possible has no softmax to collapse,
        so it does not count, and neither does one whose logits are not finite.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the logits are not floating point.

    Example:
        >>> near = softmax_collapse(torch.tensor([[16.0, 0.0], [17.0, 0.0]]), torch.tensor([0, 0]))
        >>> near.collapsed_N  # float32 absorbs one other class from 24 log(2) = 16.64 nats on
        tensor([False,  True])
        >>> near.headroom_N.round(decimals=1), near.zero_loss_N
        (tensor([ 0.6000, -0.4000]), tensor([False,  True]))
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.ndim == 0 or (target is not None and target.shape != logits.shape[:-1]):
        got = f"{tuple(logits.shape)}" + (f" and {tuple(target.shape)}" if target is not None else "")
        raise ValueError(f"logits must be [..., C] and target [...]: classes last, one target a sample; got {got}")
    counted = None if target is None else target != ignore_index
    collapsed_N, headroom_N, _ = absorption(logits, counted, dtype)
    counts_N = headroom_N.isfinite()
    if target is None:
        return SoftmaxCollapse(collapsed_N[counts_N], headroom_N[counts_N])
    zero_N = zero_losses(logits, target, dtype, ignore_index=ignore_index)
    return SoftmaxCollapse(collapsed_N[counts_N], headroom_N[counts_N], zero_N[counts_N])


@torch.no_grad()
def absorption(
    logits: Tensor, counted: Tensor | None = None, dtype: torch.dtype | None = None, closely: int | None = None
) -> SoftmaxCollapse:
    """The same of all samples, ``[N]``, with a headroom of nan where one does not count.

    Args:
        logits: ``[..., C]``.
        counted: ``[...]``, False for samples that do not count.
        dtype: In which the loss takes its softmax; None is the logits' own.
        closely: How many samples, those with the least headroom, to try; the others are given the middle between
            two bounds, at most log(C) / 2 off. None is all.
    """
    logits, dtype = torch.atleast_2d(logits.detach()), dtype or logits.dtype
    parts = [_margins(block_NC.to(dtype)) for (block_NC,) in blocks(logits)]
    collapsed_N, nearest_N, rest_N = map(torch.cat, zip(*parts, strict=True))
    # A term is absorbed by 1 up to u. Not before the largest of them is that small, and surely when all together are.
    log_u = math.log(torch.finfo(dtype).eps / 2)
    low_N, high_N = -log_u - nearest_N, -log_u - rest_N
    headroom_N = (low_N + high_N) / 2
    counts_N = headroom_N.isfinite() if counted is None else headroom_N.isfinite() & counted.flatten()
    headroom_N[~counts_N] = math.nan
    order_N = headroom_N.argsort()[: len(headroom_N) if closely is None else closely]  # nan is sorted behind
    for chosen_K in order_N.split(max(1, _BLOCK // max(1, logits.shape[-1]))):
        z_KC = logits[torch.unravel_index(chosen_K, logits.shape[:-1])].to(dtype)
        tried_K = _tried(z_KC, low_N[chosen_K] - _SLACK, high_N[chosen_K] + _SLACK)
        headroom_N[chosen_K] = tried_K.where(counts_N[chosen_K], math.nan)
    return SoftmaxCollapse(collapsed_N & counts_N, headroom_N)


@torch.no_grad()
def sigmoid_absorption(logits: Tensor, dtype: torch.dtype | None = None) -> SoftmaxCollapse:
    """The same of binary decisions, ``[N]``: where the sigmoid of a logit is exactly 1 or exactly 0.

    A sigmoid has half the trouble of a softmax: near 1 it is absorbed as early, but near 0 it keeps its digits.

    Example:
        >>> near = sigmoid_absorption(torch.tensor([0.0, 20.0, -20.0]))
        >>> near.collapsed_N, near.headroom_N.round()
        (tensor([False,  True, False]), tensor([17., -3., 69.]))
    """
    z_N = logits.detach().flatten().to(dtype or logits.dtype)
    p_N = z_N.sigmoid()
    # Where that happens is a matter of how this device computes it, so: try.
    tried = torch.arange(0, 800, 0.01, device=z_N.device).to(z_N.dtype)
    ends = torch.stack([(tried.sigmoid() < 1).sum(), ((-tried).sigmoid() > 0).sum()]).to(z_N.dtype) * 0.01
    exact_N = _exact(z_N)
    headroom_N = torch.where(exact_N >= 0, ends[0] - exact_N, ends[1] + exact_N)
    return SoftmaxCollapse((p_N == 1) | (p_N == 0), headroom_N)


@torch.no_grad()
def zero_losses(
    logits: Tensor,
    target: Tensor,
    dtype: torch.dtype | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """True where the cross-entropy is exactly 0, ``[N]``; targets are ``[...]``, or probabilities ``[..., C]``."""
    parts = [
        F.cross_entropy(
            z_NC.to(dtype or z_NC.dtype),
            t_N if target.ndim < logits.ndim else t_N.to(dtype or z_NC.dtype),
            ignore_index=ignore_index,
            reduction="none",
            label_smoothing=label_smoothing,
        )
        == 0
        for z_NC, t_N in blocks(logits.detach(), target)
    ]
    return torch.cat(parts)


def blocks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The samples a few at a time, and what belongs to them: without a copy of all where memory is not contiguous."""
    if logits.ndim == 1:
        logits, others = logits.unsqueeze(0), tuple(o.unsqueeze(0) for o in others)
    samples = logits.ndim - 1
    if logits.is_contiguous():
        logits, others, samples = logits.flatten(0, -2), tuple(o.flatten(0, samples - 1) for o in others), 1
    size = max(1, _BLOCK // max(1, logits[:1].numel()))
    for parts in zip(*(t.split(size) for t in (logits, *others)), strict=True):
        yield tuple(part.flatten(0, samples - 1) for part in parts)


def _margins(z_NC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether absorbed; how far the runner-up is behind the largest; minus the log of what all others add to 1."""
    top_N1 = z_NC.argmax(-1, keepdim=True)
    d_NC = z_NC - z_NC.gather(-1, top_N1)
    collapsed_N = d_NC.exp().sum(-1) == 1
    others_NC = _exact(d_NC).scatter(-1, top_N1, -math.inf)
    return collapsed_N, -others_NC.amax(-1), -others_NC.logsumexp(-1)


def _tried(z_KC: Tensor, low_K: Tensor, high_K: Tensor) -> Tensor:
    """Headroom of each, between these bounds, by halving."""
    top_K1 = z_KC.argmax(-1, keepdim=True)
    d_KC = _exact(z_KC - z_KC.gather(-1, top_K1))
    width = math.log(z_KC.shape[1]) + 2 * _SLACK
    for _ in range(math.ceil(math.log2(width / _NARROW))):
        middle_K = (low_K + high_K) / 2
        further_KC = (d_KC - middle_K.unsqueeze(-1)).scatter_(-1, top_K1, 0.0).to(z_KC.dtype)
        absorbed_K = further_KC.exp_().sum(-1) == 1
        low_K, high_K = middle_K.where(~absorbed_K, low_K), middle_K.where(absorbed_K, high_K)
    return (low_K + high_K) / 2


def _exact(t: Tensor) -> Tensor:
    """In a dtype fine enough to add nats to, so that what is rounded is what the softmax rounds."""
    return t if t.dtype in (torch.float32, torch.float64) else t.float()
