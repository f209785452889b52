# shape suffixes: N = samples (any leading dimensions), C = classes
from __future__ import annotations

import math

import torch
from torch import Tensor


def slope_spread(slopes_NC: Tensor) -> Tensor:
    r"""Spread of the slopes of each sample, :math:`\Delta_a = \max_k a_k - \min_k a_k`.

    Args:
        slopes_NC: Change of each logit by the whole update, classes last.

    Returns:
        Spread in nats, ``[N]``.

    Raises:
        ValueError: If there are fewer than two classes.

    Example:
        >>> slope_spread(torch.tensor([[3.0, -1.0, 0.0]]))
        tensor([4.])
    """
    if slopes_NC.ndim == 0 or slopes_NC.shape[-1] < 2:
        raise ValueError(
            f"a softmax needs at least two classes in the last dimension, got shape {tuple(slopes_NC.shape)}; "
            "a binary head z becomes two classes as torch.cat([torch.zeros_like(z), z], -1)"
        )
    return slopes_NC.amax(-1) - slopes_NC.amin(-1)


def spread_radius(slopes_NC: Tensor) -> Tensor:
    r"""Radius guaranteed for any logits: :math:`\rho_a = \pi / \Delta_a`, pi over the spread of the slopes.

    Inside it the partition function :math:`\sum_k e^{z_k + a_k t}` has no complex zero, so the
    Taylor series of the cross-entropy along the update converges (Ghosts of Softmax, arXiv 2603.13552).

    Returns:
        Radius in units of the update, ``[N]``. ``inf`` where every logit moves alike, because the
        softmax does not see such a move.

    Example:
        >>> spread_radius(torch.tensor([[0.0, math.pi], [1.0, 1.0]]))
        tensor([1., inf])
    """
    # No epsilon: dividing by an exact zero gives the inf promised above.
    return math.pi / slope_spread(slopes_NC)


def step_ratio(slopes_NC: Tensor) -> Tensor:
    r"""The normalized step ratio :math:`r = \tau / \rho_a` of every sample; above 1 is beyond the radius.

    With the slopes taken along the whole update the norm cancels: r is the spread over pi, and it
    is linear in the update, so a step scaled by s has ratio s * r. Take ``.max()`` for the batch,
    or ``.quantile(q)`` to leave out the most sensitive samples.

    Returns:
        Dimensionless ratio, ``[N]``.

    Example:
        >>> step_ratio(torch.tensor([[0.0, 2 * math.pi]]))
        tensor([2.])
    """
    return slope_spread(slopes_NC) / math.pi


def exact_radius(logits_N2: Tensor, slopes_N2: Tensor) -> Tensor:
    r"""Distance to the nearest complex zero of the partition function, for two classes.

    With margin :math:`\delta = z_1 - z_2` the nearest zero lies at
    :math:`\sqrt{\delta^2 + \pi^2} / \Delta_a` (arXiv 2603.13552): never closer than
    :func:`spread_radius`, and equal to it on the decision boundary.

    Returns:
        Radius in units of the update, ``[N]``.

    Raises:
        ValueError: If the shapes differ, or for more than two classes. The nearest zero then has no closed
            form, and the formula applied to the two largest logits is no bound: it can exceed the true radius.

    Example:
        >>> exact_radius(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.pi]]))
        tensor([1.])
    """
    if logits_N2.shape != slopes_N2.shape:
        raise ValueError(f"logits {tuple(logits_N2.shape)} and slopes {tuple(slopes_N2.shape)} differ in shape")
    spread_N = slope_spread(slopes_N2)
    if slopes_N2.shape[-1] != 2:
        raise ValueError(
            f"the exact radius has a closed form for two classes only, these logits have {slopes_N2.shape[-1]}; "
            "use spread_radius, which is guaranteed for any number"
        )
    margin_N = logits_N2[..., 0] - logits_N2[..., 1]
    return torch.hypot(margin_N, torch.full_like(margin_N, math.pi)) / spread_N
