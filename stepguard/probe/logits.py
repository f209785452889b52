from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# A softmax cross-entropy does not see all logits of a sample rise alike, so its gradient sums to zero over
# the classes. 5% leaves room for half precision and for a small z-loss on top; other losses miss by far.
_SHIFT_TOLERANCE = 0.05
# Label smoothing of 0.3 looks like a factor of 1.4 while the model is undecided; it is none.
_SCALE_TOLERANCE = 1.5
_ROWS_LOOKED_AT = 64


class LogitsError(ValueError):
    """The logits of a softmax could not be found in what the model returned."""


def find_logits(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, the first of a tuple or list, or ``.logits``.

    Example:
        >>> find_logits((torch.ones(1, 2), "hidden state"))
        tensor([[1., 1.]])
    """
    found = output
    if isinstance(output, (tuple, list)) and output and not hasattr(output, "logits"):
        found = output[0]
    elif not isinstance(output, Tensor):
        found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise LogitsError(
            f"the model returned {_describe(output)}, in which stepguard finds no logits (it looks for a tensor, "
            "the first of a tuple, or .logits); pass logits=, a function from this output to the logits"
        )
    return found


def largest_finite(logits: Tensor) -> float:
    """Largest absolute logit, classes masked out with infinities aside; 0 where there is none."""
    finite = logits[logits.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def class_dimension(gradient: Tensor) -> int | None:
    """The dimension that holds the classes, told by the loss gradient on the logits.

    The gradient of a softmax cross-entropy sums to zero over the classes, whatever the labels, weights
    or smoothing; this tells ``[N, C]`` and ``[N, T, C]`` from ``[N, C, H, W]`` without being told.

    Returns:
        The dimension, or None where the gradient is all zero or not finite and so says nothing.

    Raises:
        LogitsError: If there is no such dimension: one class, or the loss is not a softmax's.

    Example:
        >>> class_dimension(torch.tensor([[0.5, -0.2, -0.3]]))
        -1
    """
    shape = tuple(gradient.shape)
    # Image-like losses keep the classes in dimension 1, all others in the last.
    candidates = [d for d in ((-1, 1) if gradient.ndim > 2 else (-1,)) if gradient.ndim > 1 and shape[d] > 1]
    if not candidates:
        raise LogitsError(
            f"the logits have shape {shape}: a softmax needs at least two classes, in the last dimension or in "
            "dimension 1. A binary head z is a softmax over (0, z): pass "
            "logits=lambda z: torch.cat([torch.zeros_like(z), z], dim=-1)"
        )
    exact = gradient.detach().double() if gradient.device.type != "mps" else gradient.detach().float()
    size = exact.abs().sum()
    shares = torch.stack([size, *(exact.sum(d).abs().sum() for d in candidates)]).tolist()
    total, sums = shares[0], shares[1:]
    if not 0 < total < float("inf"):
        return None
    best = min(range(len(candidates)), key=lambda i: sums[i])
    if sums[best] > _SHIFT_TOLERANCE * total:
        raise LogitsError(
            f"the loss is not a softmax cross-entropy of the model's output of shape {shape}: its gradient does not "
            f"sum to zero over the classes (it leaves {sums[best] / total:.0%}). If the softmax is taken of "
            "something else, pass logits=, a function from the model's output to those logits; stepguard has "
            "nothing to say about regression or independent sigmoids"
        )
    return candidates[best]


def check_scale(logits: Tensor, gradient: Tensor, class_dim: int) -> None:
    """Refuse logits that the loss scales before its softmax, as in ``cross_entropy(logits / T, y)``.

    Beside the label, the gradient is proportional to the probabilities, so its logarithm rises with the
    logits by exactly what they are multiplied by. Rows with one label tell it; smoothed or mixed labels
    and two classes do not, and pass.

    Raises:
        LogitsError: Naming the factor, and what to pass.

    Example:
        >>> z = torch.tensor([[0.0, 1.0, 2.0, 4.0]])
        >>> check_scale(z, z.softmax(-1) - torch.tensor([[1.0, 0, 0, 0]]), -1)
    """
    z_NC = logits.detach().movedim(class_dim, -1).flatten(0, -2).double()
    g_NC = gradient.detach().movedim(class_dim, -1).flatten(0, -2).double()
    labelled_N = ((g_NC < 0).sum(-1) == 1) & ((g_NC > 0).sum(-1) == g_NC.shape[-1] - 1)
    rows = labelled_N.nonzero()[:_ROWS_LOOKED_AT, 0]
    if g_NC.shape[-1] < 3 or len(rows) == 0:
        return
    others = g_NC[rows] > 0
    log_g = g_NC[rows][others].log().view(len(rows), -1)
    z = z_NC[rows][others].view(len(rows), -1)
    log_g, z = log_g - log_g.mean(-1, keepdim=True), z - z.mean(-1, keepdim=True)
    covariance, z_square, g_square = (log_g * z).sum(-1), z.square().sum(-1), log_g.square().sum(-1)
    factor = (covariance / z_square).median().item()
    straight = (covariance.square() / (z_square * g_square)).median().item()
    if straight > 0.999 and not 1 / _SCALE_TOLERANCE <= factor <= _SCALE_TOLERANCE:
        raise LogitsError(
            f"the softmax in the loss is of these logits times {factor:.3g}, not of the logits themselves, so r would "
            "be wrong by that factor; pass logits=, as in logits=lambda z: z / temperature"
        )


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a {type(output).__name__} with keys {sorted(map(str, output))}"
    if isinstance(output, Tensor):
        return f"a tensor of {output.dtype} with shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"
