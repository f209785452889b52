# shape suffixes: N = samples, C = classes
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stepguard.geometry.collapse import SoftmaxCollapse, absorption, blocks, sigmoid_absorption, zero_losses
from stepguard.probe.softmax import Entry

_CLOSELY = 2**18
"""Logits of the samples with least headroom, for which it is found by trying."""


@dataclass(eq=False)
class SeenSoftmax:
    """A softmax of a loss as training took it: what is left of it when the logits are gone, ``[N]`` each."""

    near: SoftmaxCollapse
    """Headroom is nan where a sample does not count."""
    norm_N: Tensor
    """Euclidean norm of the logits."""
    dtype: torch.dtype
    classes: int
    class_dim: int | None = None
    """Of the logits; None if each is a binary decision, or if the softmax is over several dimensions."""
    target: Tensor | None = None
    """True class of each sample."""
    zero_gradient_N: Tensor | None = None
    """True where no gradient at all came to the true logit."""
    used: Tensor | None = None
    """Which of its results the loss went on with, where it has one for each sample; None is all of them."""
    superseded: bool = False
    """Whether something that was seen later knows better what the loss made of it."""

    def label(self, target: Tensor, zero_loss: Tensor, counted: Tensor | None = None) -> None:
        """Take the true classes, where they come after the softmax."""
        self.target = target
        headroom_N = self.near.headroom_N
        if counted is not None:
            headroom_N = headroom_N.where(counted.flatten(), math.nan)
        self.near = self.near._replace(headroom_N=headroom_N, zero_loss_N=zero_loss.flatten())

    def gradient(self, gradient: Tensor) -> None:
        """Take the gradient that came to the logits."""
        if self.classes == 1:
            self.zero_gradient_N = gradient.flatten() == 0
        elif self.target is not None and self.class_dim is not None:
            g_NC = gradient.movedim(self.class_dim, -1)
            true = self.target.reshape(g_NC.shape[:-1]).clamp(0, g_NC.shape[-1] - 1)
            self.zero_gradient_N = g_NC.gather(-1, true.unsqueeze(-1)).flatten() == 0

    def counts_N(self) -> Tensor:
        """Which of its samples the loss counts."""
        counts_N, used = self.near.headroom_N.isfinite(), self.used
        if used is None:
            return counts_N
        if self.class_dim is not None and used.numel() == len(counts_N) * self.classes:
            used = used.any(self.class_dim)
        return counts_N & used.flatten() if used.numel() == len(counts_N) else counts_N


def look_at(found: Entry, target: Tensor | None, dtype: torch.dtype, smoothing: float = 0.0) -> SeenSoftmax:
    """Look at logits before they are gone.

    Args:
        found: What enters the loss.
        target: Class indices, or probabilities of the classes or of the binary decisions.
        dtype: In which the loss takes its softmax.
        smoothing: The loss's label smoothing.
    """
    if found.kind in ("binary", "probabilities"):
        return _binary(found, target, dtype)
    softmax = found.softmax()
    z, counted = softmax.logits.detach().movedim(softmax.class_dim, -1), softmax.counted
    closely = max(_CLOSELY // max(1, z.shape[-1]), z[..., 0].numel() // 50, 16)
    near = absorption(z, counted, dtype, closely)
    norms = [z_NC.masked_fill(z_NC.isinf(), 0).float().norm(dim=-1) for (z_NC,) in blocks(z)]
    look = SeenSoftmax(near, torch.cat(norms), dtype, z.shape[-1])
    if isinstance(found.class_dim, int):
        look.class_dim = found.class_dim
        if target is not None:
            soft = target.is_floating_point()
            t = (
                target.movedim(softmax.class_dim, -1)
                if soft
                else target
                if counted is None
                else target.where(counted, 0)
            )
            look.label(t.argmax(-1) if soft else t, zero_losses(z, t, dtype, label_smoothing=smoothing))
    return look


def _binary(found: Entry, target: Tensor | None, dtype: torch.dtype) -> SeenSoftmax:
    z, zero = found.input.detach(), None
    if found.kind == "probabilities":
        p = z
        limit = 1 - math.log(torch.finfo(dtype).eps / 2)  # how far beyond collapse a probability does not tell
        z = torch.logit(p).clamp(max=limit)
        if target is not None:
            zero = (p == target).flatten()
    elif target is not None:
        zero = F.binary_cross_entropy_with_logits(z.to(dtype), target.to(dtype), reduction="none").flatten() == 0
    near = sigmoid_absorption(z, dtype)
    return SeenSoftmax(near._replace(zero_loss_N=zero), z.flatten().abs().float(), dtype, 1)
