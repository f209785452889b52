# shape suffixes: N = samples, C = classes, 2 = the two largest logits
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogitMotion(NamedTuple):
    """What the closed-form radii need to know of ``z + t * a``, one row a sample.

    A summary rather than the logits themselves, so that a wide head can fold it a slice at a time.
    """

    slope_max_N: Tensor
    slope_min_N: Tensor
    top_logits_N2: Tensor
    top_slopes_N2: Tensor
    classes: int


def motion_of(logits_NC: Tensor, slopes_NC: Tensor) -> LogitMotion:
    """Summarise logits and their slopes along an update.

    Args:
        logits_NC: Logits before the update, classes last; leading dimensions are free.
        slopes_NC: Change of each logit per whole update (the Jacobian-vector product), same shape.

    Raises:
        ValueError: If the shapes differ or there are fewer than two classes.

    Example:
        >>> import torch
        >>> m = motion_of(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[3.0, -1.0, 0.0]]))
        >>> m.slope_max_N, m.slope_min_N, m.top_logits_N2
        (tensor([3.]), tensor([-1.]), tensor([[2., 1.]]))
    """
    if logits_NC.shape != slopes_NC.shape:
        raise ValueError(f"logits {tuple(logits_NC.shape)} and slopes {tuple(slopes_NC.shape)} differ in shape")
    classes = logits_NC.shape[-1] if logits_NC.ndim else 0
    if classes < 2:
        raise ValueError(
            f"a softmax needs at least two classes in the last dimension, got logits of shape "
            f"{tuple(logits_NC.shape)}; a binary head z becomes two classes as torch.cat([0 * z, z], -1)"
        )
    top_logits_N2, index_N2 = logits_NC.topk(2, dim=-1)
    return LogitMotion(
        slope_max_N=slopes_NC.amax(-1),
        slope_min_N=slopes_NC.amin(-1),
        top_logits_N2=top_logits_N2,
        top_slopes_N2=slopes_NC.gather(-1, index_N2),
        classes=classes,
    )
