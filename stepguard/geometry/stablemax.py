from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic


def log_stablemax(logits: Tensor, dim: int = -1) -> Tensor:
    r"""Logarithm of StableMax, :math:`s(z_i) / \sum_k s(z_k)`, a softmax that grows linearly instead of exponentially.

    With :math:`s(x) = x + 1` for :math:`x \ge 0` and :math:`1 / (1 - x)` below (Grokking at the Edge of Numerical
    Stability, arXiv 2501.04697, section 4.1). The likeliest class gets :math:`-\log(1 + \text{the rest})`, so its
    probability may come as near to 1 as it likes and value and gradient keep their digits.

    Args:
        logits: Any shape. 16 bits are computed in float32.
        dim: The dimension of the classes.

    Returns:
        Log-probabilities in nats, shape and dtype as from ``torch.log_softmax``.

    Raises:
        TypeError: If the logits are not floating point.
        IndexError: If they have no such dimension, or no classes in it.

    Example:
        >>> log_stablemax(torch.tensor([1.0, 0.0, -1.0, -1.0])).exp()
        tensor([0.5000, 0.2500, 0.1250, 0.1250])
        >>> log_stablemax(torch.tensor([1e30, 0.0]))  # a softmax gives 0 and -1e30
        tensor([-1.0000e-30, -6.9078e+01])
    """
    if has_torch_function_variadic(logits):
        return handle_torch_function(log_stablemax, (logits,), logits, dim=dim)
    # An empty call tells what PyTorch makes of this dtype, under autocast too.
    return _log_stablemax(logits, dim).to(logits.new_empty(0).log_softmax(0).dtype)


def stablemax_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross-entropy of a StableMax, for the calls that ``torch.nn.functional.cross_entropy`` takes.

    It does not collapse (arXiv 2501.04697): at any finite logits the gradient of a fitted sample is small but right.
    Taken in logarithms, its relative error is up to some :math:`4 + 2 \log(1 + \max |z|)` epsilons of float32 or
    float64; in 16 bits only the result is rounded.

    Args:
        input: Logits, ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]``.
        target: Class indices, the shape without C; or class probabilities, the shape of the input.
        weight: Of each class, ``[C]``.
        ignore_index: Samples of this class index do not count.
        reduction: "none", "mean" or "sum".
        label_smoothing: What of the target is spread over all classes, 0 to 1.

    Returns:
        Loss in nats, shape and dtype as from ``cross_entropy``.

    Raises:
        TypeError: If the input is not floating point.
        RuntimeError, ValueError, IndexError: Where ``cross_entropy`` does, with its words.

    Example:
        >>> z = torch.tensor([[1.0, 0.0, -1.0, -1.0], [1e30, 0.0, 0.0, 0.0]])
        >>> stablemax_cross_entropy(z, torch.tensor([0, 0]), reduction="none")
        tensor([6.9315e-01, 3.0000e-30])
    """
    if has_torch_function_variadic(input, target, weight):
        return handle_torch_function(
            stablemax_cross_entropy,
            (input, target, weight),
            input,
            target,
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    class_dim = 0 if input.ndim == 1 else 1
    log_p = _log_stablemax(input, class_dim)
    soft, classes = target.shape == input.shape, input.shape[class_dim]
    # PyTorch's own checks and its dtype, under autocast too, from an empty batch of the same kind.
    like = F.cross_entropy(
        input.new_empty(0, classes),
        target.new_empty(0, classes) if soft else target.new_empty(0, dtype=torch.long),
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    weight = None if weight is None else weight.to(log_p.dtype)
    # Not cross_entropy(log s(z)), the same in exact arithmetic: its log_softmax would absorb what is kept here.
    if soft:
        loss = _expected(-log_p, target, weight, reduction, label_smoothing, class_dim)
    else:
        loss = F.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
        if label_smoothing > 0:  # here it is harmless: far from 1 nothing is absorbed
            evenly = F.cross_entropy(
                log_p, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=1.0
            )
            loss = (1 - label_smoothing) * loss + label_smoothing * evenly
    return loss.to(like.dtype)


class StableMaxCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`stablemax_cross_entropy` as a module, in the place of ``nn.CrossEntropyLoss`` and with its arguments.

    Example:
        >>> criterion = StableMaxCrossEntropyLoss(reduction="sum")
        >>> criterion(torch.tensor([[0.0, -1.0], [3.0, 0.0]]), torch.tensor([0, 0])).neg().exp()  # 2 / 3 * 4 / 5
        tensor(0.5333)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return stablemax_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def _log_stablemax(logits: Tensor, dim: int) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    log_s = _log_s(_wide(logits))
    log_s_top, top = log_s.max(dim, keepdim=True)
    rest = (log_s - log_s_top).exp().scatter(dim, top, 0.0).sum(dim, keepdim=True)
    # Not log_s - log_s_top - log1p(rest) for all: the slope p of the likeliest would be what 1 - (1 - p) leaves of it.
    return log_s.log_softmax(dim).scatter(dim, top, -rest.log1p())


def _log_s(x: Tensor) -> Tensor:
    # The side of 0 is never 0 itself, as the slope of abs() is at 0. Nor is it chosen after the logarithm: of
    # log(x + 1) and -log(1 - x) one is infinite at -1 or 1, and makes the gradient nan there.
    side = torch.ones_like(x).copysign(x.detach())
    return side * (side * x).log1p()


def _expected(
    nll: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float, dim: int
) -> Tensor:
    target = _wide(target)
    if label_smoothing > 0:
        target = (1 - label_smoothing) * target + label_smoothing / nll.shape[dim]
    if weight is not None:
        target = target * weight.reshape([-1 if d == dim else 1 for d in range(nll.ndim)])
    loss = (nll * target).sum(dim)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
