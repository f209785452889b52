# shape suffixes: N = samples (any leading dimensions), C = classes
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stepguard.geometry.stablemax import log_stablemax
from stepguard.probe.swapping import HALVES

_COLUMNS = 4096
MASKED = 1e6
"""Nats below the largest logit from which on a class is taken to be masked out: exp of it is zero in any dtype."""


class Look(NamedTuple):
    """What the samples of a softmax are like, ``[N]`` each, of those that count; None is what is not known."""

    loss_N: Tensor | None = None
    """Cross-entropy, in nats."""
    collapsed_N: Tensor | None = None
    """True where the sum of the softmax is exactly 1 in half precision; None where it was not taken in that."""


class Softmax(NamedTuple):
    """A softmax in a loss: the logits that enter it, and which of its samples the loss counts."""

    logits: Tensor
    class_dim: int = -1
    counted: Tensor | None = None
    """True for the samples that count, shaped like the logits without their classes; None is all of them."""
    columns: Callable[[int, int], Tensor] | None = None
    """From a range of classes to those columns of the logits, where they are better made a few at a time."""
    labels: Tensor | None = None
    """The class that each sample should be of, shaped as what counts, where the loss names one."""

    def of(self, used: Tensor | None) -> Softmax | None:
        """The same, of those samples only for which a result, with or without classes, was used; None if none."""
        if used is None or used.ndim == 0:
            return self if used is None or used else None
        if used.ndim == self.logits.ndim:
            used = used.any(self.class_dim)
        samples = self.logits.movedim(self.class_dim, -1).shape[:-1]
        if used.shape != samples:
            return self
        return self._replace(counted=used if self.counted is None else used & self.counted)

    def apart_from(self, memory: set[int]) -> Softmax:
        """The same, with logits of their own where they lie in one of these storages, by address."""
        shared = self.logits.untyped_storage().data_ptr() in memory
        return self._replace(logits=self.logits.detach().clone()) if shared else self

    def pieces(self) -> Iterator[Tensor]:
        """The logits a few thousand classes at a time, classes last."""
        logits_NC = self.logits.movedim(self.class_dim, -1)
        for start in range(0, logits_NC.shape[-1], _COLUMNS):
            stop = min(start + _COLUMNS, logits_NC.shape[-1])
            if self.columns:
                yield self.columns(start, stop).movedim(self.class_dim, -1)
            else:
                yield logits_NC[..., start:stop]

    def named(self, labels: Tensor | None) -> Softmax:
        """The same, with the labels that another function names, if it does."""
        return self if labels is None else self._replace(labels=labels)

    def look(self, dtype: torch.dtype | None) -> Look:
        """What its samples are like, where training took it in this dtype; None if that is not known."""
        try:
            return Look(self.losses(), self._collapsed(dtype) if dtype in HALVES and not self.columns else None)
        except Exception:  # labels of a kind of their own, or no memory; the slopes are what counts
            return Look()

    def _collapsed(self, dtype: torch.dtype | None) -> Tensor:
        z_NC = forward_ad.unpack_dual(self.logits).primal.movedim(self.class_dim, -1).to(dtype)
        collapsed_N: Tensor = (z_NC - z_NC.amax(-1, keepdim=True)).exp().sum(-1) == 1
        return collapsed_N.flatten() if self.counted is None else collapsed_N[self.counted]

    def losses(self) -> Tensor | None:
        """Cross-entropy of the samples that count, in nats, ``[N]``; None where the loss names no classes."""
        z_NC = forward_ad.unpack_dual(self.logits).primal.movedim(self.class_dim, -1)
        if self.labels is None or self.labels.shape != z_NC.shape[:-1]:
            return None
        chunks = [
            chunk.float().logsumexp(-1) if chunk.dtype in (torch.float16, torch.bfloat16) else chunk.logsumexp(-1)
            for chunk in z_NC.split(_COLUMNS, -1)
        ]
        total_N = chunks[0] if len(chunks) == 1 else torch.stack(chunks).logsumexp(0)
        label_N1 = self.labels.long().clamp(0, z_NC.shape[-1] - 1).unsqueeze(-1)  # what is ignored may be any number
        loss_N: Tensor = total_N - z_NC.gather(-1, label_N1).squeeze(-1)
        return loss_N.flatten() if self.counted is None else loss_N[self.counted]

    def spread(self, pieces: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        r"""Spread of the slopes :math:`\Delta_a` of the samples that count, ``[N]``.

        Args:
            pieces: Logits and their slopes, a few classes at a time. A class that is masked out, with -inf or by
                a large number, is not in the softmax, so its slope says nothing.
        """
        floor = forward_ad.unpack_dual(self.logits).primal.amax(self.class_dim).unsqueeze(-1) - MASKED
        highest = lowest = torch.zeros(())
        for i, (z, a) in enumerate(pieces):
            if bool((z.amin(-1, keepdim=True) >= floor).all()):  # by far the most: nothing is masked out
                high, low = a.amax(-1), a.amin(-1)
            else:
                masked = ((z < floor) | z.isneginf()) & a.isfinite()
                high, low = a.masked_fill(masked, -math.inf).amax(-1), a.masked_fill(masked, math.inf).amin(-1)
            highest = torch.maximum(highest, high) if i else high
            lowest = torch.minimum(lowest, low) if i else low
        spread = highest - lowest
        return spread.flatten() if self.counted is None else spread[self.counted]


class Entry(NamedTuple):
    """How a function of PyTorch takes a softmax: what enters it, and what that is."""

    input: Tensor
    kind: str
    """``logits``, ``binary`` logits, ``probabilities`` of binary decisions, ``log_probabilities``, logits of a
    ``stablemax``, or of what may be any of these the ``logarithm``."""
    class_dim: int | tuple[int, ...] = -1
    counted: Tensor | None = None
    labels: Tensor | None = None

    def softmax(self) -> Softmax:
        """The softmax over what entered, as logits."""
        z = self.input
        if self.kind == "probabilities":
            z = torch.logit(z)
        if self.kind in ("binary", "probabilities"):
            return Softmax(torch.stack((torch.zeros_like(z), z), -1))  # a sigmoid is a softmax over (0, z)
        if isinstance(self.class_dim, int):
            if self.kind == "stablemax":  # it is the softmax of its own logarithm
                z = log_stablemax(z, self.class_dim)
            return Softmax(z, self.class_dim, self.counted, labels=self.labels)
        last = tuple(range(-len(self.class_dim), 0))
        return Softmax(z.movedim(self.class_dim, last).flatten(-len(last)))


def entry(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry | None:
    """What enters the softmax, if this call of a PyTorch function takes one for a loss.

    Example:
        >>> entry(torch.nn.functional.cross_entropy, (torch.ones(2, 3), torch.tensor([0, -100])), {}).counted
        tensor([ True, False])
    """
    found = ENTRIES.get(getattr(function, "__name__", ""))
    return found(args, kwargs) if found else None


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def _labelled(kind: str, ignored: int = 4) -> Callable[[tuple[Any, ...], dict[str, Any]], Entry]:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        z, target = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "target")
        class_dim = 1 if z.ndim > 1 else 0
        if target.is_floating_point():  # probabilities rather than class indices
            return Entry(z, kind, class_dim)
        counted = target != argument(args, kwargs, ignored, "ignore_index", -100)
        return Entry(z, kind, class_dim, counted, target)

    return read


def _along(kind: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Entry]:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        z, dim = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "dim")
        if dim is None:  # the default that F.log_softmax has kept from long ago
            dim = 0 if z.ndim in (0, 1, 3) else 1
        return Entry(z, kind, tuple(dim) if isinstance(dim, (tuple, list)) else int(dim))

    return read


def _each(kind: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Entry]:
    return lambda args, kwargs: Entry(argument(args, kwargs, 0, "input"), kind)


def _fused(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    h, weight, target = (argument(args, kwargs, i, n) for i, n in enumerate(("input", "linear_weight", "target")))
    z = torch.nn.functional.linear(h, weight, kwargs.get("linear_bias"))
    ignored = kwargs.get("ignore_index")
    return Entry(z, "logits", -1, target != (-100 if ignored is None else ignored), target)


# By the functions' own names: the same holds for torch.x, Tensor.x and torch.nn.functional.x.
ENTRIES: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], Entry]] = {
    "cross_entropy": _labelled("logits"),
    "nll_loss": _labelled("log_probabilities"),
    "stablemax_cross_entropy": _labelled("stablemax", ignored=3),
    "linear_cross_entropy": _fused,
    "log_softmax": _along("logits"),
    "special_log_softmax": _along("logits"),
    "logsumexp": _along("logits"),
    "special_logsumexp": _along("logits"),
    "binary_cross_entropy_with_logits": _each("binary"),
    "binary_cross_entropy": _each("probabilities"),
    "log_sigmoid": _each("binary"),
    "soft_margin_loss": _each("binary"),
    "multilabel_soft_margin_loss": _each("binary"),
    "softmax": _along("logits"),
    "special_softmax": _along("logits"),
    "sigmoid": _each("binary"),
    "log": _each("logarithm"),
    "log1p": _each("logarithm"),
    "log2": _each("logarithm"),
    "log10": _each("logarithm"),
}
LOG_SOFTMAXES = {"log_softmax", "special_log_softmax"}
GATES = {"softmax", "special_softmax", "sigmoid"}
"""On their own these may be anything; they belong to a loss where their logarithm is taken."""
LOGARITHMS = {"log", "log1p", "log2", "log10"}
