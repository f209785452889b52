# shape suffixes: P = parameters
"""What makes g perpendicular to w, from their inner products: (g + along * w) * scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FAR = 1e38
"""How many times as long as the weights a gradient may be, for float32 to hold the quotient."""


def projection(ww: float, wg: float, gg: float, rounding: float, restore_norm: bool) -> tuple[float, float]:
    """``along`` and ``scale``; 0 and 1 where the weights are zero or something is not finite.

    Args:
        ww: w.w; ``wg`` and ``gg`` alike.
        wg: Negative where the gradient wants longer weights.
        gg: The square of the length that ``restore_norm`` restores.
        rounding: How much of gg may be rounding. If no more would be left, ``scale`` is 0.
        restore_norm: Whether g is to become as long as it was.

    Example:
        >>> projection(1.0, 3.0, 25.0, 1e-14, restore_norm=True)
        (-3.0, 1.25)
    """
    along = -wg / ww if ww else math.nan
    left = gg + along * wg
    if not (math.isfinite(left) and abs(along) < _FAR):
        return 0.0, 1.0
    if left <= rounding:
        return along, 0.0
    return along, math.sqrt(gg / left) if restore_norm else 1.0


def projections(products_4P: Tensor, restore_norm: bool) -> tuple[Tensor, Tensor]:
    """The same of many, ``[P]`` each, without looking at a number: a GPU would be waited for.

    Example:
        >>> projections(torch.tensor([[1.0], [3.0], [25.0], [1e-14]]), restore_norm=True)
        (tensor([-3.]), tensor([1.2500]))
    """
    ww_P, wg_P, gg_P, rounding_P = products_4P
    along_P = -wg_P / ww_P
    left_P = gg_P + along_P * wg_P
    scale_P = (gg_P / left_P).sqrt() if restore_norm else torch.ones_like(left_P)
    scale_P = scale_P.where(left_P > rounding_P, 0.0)
    usable_P = left_P.isfinite() & (along_P.abs() < _FAR)
    return along_P.where(usable_P, 0.0), scale_P.where(usable_P, 1.0)
