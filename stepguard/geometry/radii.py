# shape suffixes: N = samples, 2 = the two largest logits
from __future__ import annotations

import math

import torch
from torch import Tensor

from stepguard.geometry.motion import LogitMotion


def spread_radius(motion: LogitMotion) -> Tensor:
    r"""Radius guaranteed for any logits: :math:`\pi / \Delta_a`, pi over the spread of the slopes.

    Inside it the partition function :math:`\sum_k e^{z_k + a_k t}` has no complex zero, so the
    Taylor series of the cross-entropy along the update converges (Ghosts of Softmax,
    arXiv 2603.13552, :math:`\rho_a`).

    Returns:
        Radius in units of the update, ``[N]``. ``inf`` where every logit moves alike, because the
        softmax does not see such a move.

    Example:
        >>> from stepguard.geometry import motion_of
        >>> spread_radius(motion_of(torch.zeros(2, 2), torch.tensor([[0.0, math.pi], [1.0, 1.0]])))
        tensor([1., inf])
    """
    # No epsilon: dividing by an exact zero gives the inf promised above.
    return math.pi / (motion.slope_max_N - motion.slope_min_N)


def step_ratio(motion: LogitMotion) -> Tensor:
    r"""The normalized step ratio :math:`r = \tau / \rho_a` of every sample; above 1 is beyond the radius.

    With the slopes taken along the whole update the norm cancels: r is the spread over pi, and it
    is linear in the update, so a step scaled by s has ratio s * r. Take ``.max()`` for the batch,
    or ``.quantile(q)`` to leave out the most sensitive samples.

    Returns:
        Dimensionless ratio, ``[N]``.

    Example:
        >>> from stepguard.geometry import motion_of
        >>> step_ratio(motion_of(torch.zeros(1, 2), torch.tensor([[0.0, 2 * math.pi]])))
        tensor([2.])
    """
    return (motion.slope_max_N - motion.slope_min_N) / math.pi


def exact_radius(motion: LogitMotion) -> Tensor:
    r"""Distance to the nearest complex zero of the partition function, for two classes.

    With margin :math:`\delta = z_1 - z_2` and spread :math:`\Delta` the nearest zero lies at
    :math:`\sqrt{\delta^2 + \pi^2} / \Delta` (arXiv 2603.13552): never closer than
    :func:`spread_radius`, and equal to it on the decision boundary.

    Returns:
        Radius in units of the update, ``[N]``.

    Raises:
        ValueError: For more than two classes. The nearest zero then has no closed form, and the
            formula applied to the two largest logits is no bound: it can exceed the true radius.

    Example:
        >>> from stepguard.geometry import motion_of
        >>> exact_radius(motion_of(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.pi]])))
        tensor([1.])
    """
    if motion.classes != 2:
        raise ValueError(
            f"the exact radius has a closed form for two classes only, these logits have {motion.classes}; "
            "use spread_radius, which is guaranteed for any number"
        )
    margin_N = motion.top_logits_N2[..., 0] - motion.top_logits_N2[..., 1]
    return torch.hypot(margin_N, torch.full_like(margin_N, math.pi)) / (motion.slope_max_N - motion.slope_min_N)
