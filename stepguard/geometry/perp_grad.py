# shape suffixes: P = parameters
from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from stepguard.geometry.inner_products import Pair, add_up, combine_, inner_products, pairs

Over = Literal["tensor", "all"]
_ILL = 1e-3
"""Squared sine of the angle between gradient and weights below which it is not taken from their inner products."""
_ROUNDINGS = 4
"""What is left of a gradient, in roundings of its dtype, up to which it is nothing but rounding."""


@torch.no_grad()
def perp_grad_(
    parameters: Tensor | Iterable[Tensor],
    *,
    over: Over = "tensor",
    restore_norm: bool = True,
    matrices_only: bool = False,
) -> None:
    r"""Make gradients perpendicular to their parameters, in place: perpGrad, arXiv 2501.04697, section 5.

    :math:`g \leftarrow g - \frac{\theta \cdot g}{\theta \cdot \theta} \theta`, so that the optimizer cannot lower the
    loss by scaling the weights alone (naive loss minimisation). To be called before each ``optimizer.step()``; weight
    decay and momentum come after it. With the norm restored it may come before or after clipping by the norm, with
    the same result.

    Left as they are: parameters that are zero; of one element, of which nothing would be left (unless over all); and
    gradients that are not finite, for a GradScaler to see. Gradients along their parameters, to rounding, become
    zero. Scaled gradients give results that are scaled alike. Computed in float32 at least. Sharded parameters
    (DTensor) are taken whole, by a collective, so all ranks call this together.

    Args:
        parameters: Those with a gradient are changed; each once.
        over: ``"tensor"``, each perpendicular to its own parameter (as published in code); ``"all"``, the whole
            gradient to all parameters together.
        restore_norm: Make each (or the whole) as long as it was, as the published code does. False with
            ``over="all"`` is the paper's equation 12.
        matrices_only: Leave alone what has fewer than two dimensions.

    Raises:
        ValueError: For another ``over``, or a sparse gradient, before anything is changed.

    Example:
        >>> w = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> w.grad = torch.tensor([[3.0, 4.0]])
        >>> perp_grad_(w)
        >>> w.grad
        tensor([[0., 5.]])
    """
    if over not in get_args(Over):
        raise ValueError(f'over must be "tensor" or "all", got {over!r}')
    found = [p for p in pairs(parameters) if p.dim >= 2 or not matrices_only]
    if over == "tensor":
        found = [p for p in found if p.size > 1]
    if found:
        _perpendicular_(found, over == "all", restore_norm)


@torch.no_grad()
def nlm_alignments(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Cosine of each :math:`-g` with its parameter, ``[P]`` in float64, in the order of those with a gradient.

    Raises:
        ValueError: For a sparse gradient.
    """
    found = pairs(parameters)
    ww_P, wg_P, gg_P = inner_products(found).unbind(1)
    return -wg_P / (ww_P * gg_P).sqrt()


@torch.no_grad()
def nlm_alignment(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Cosine of :math:`-g` with the parameters, all of them together: how far training scales instead of learning.

    Near 1 for naive loss minimisation (arXiv 2501.04697, section 4.2); nan without gradients.

    Raises:
        ValueError: For a sparse gradient.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> w.grad = torch.tensor([-3.0, -4.0])
        >>> nlm_alignment(w)
        tensor(1., dtype=torch.float64)
    """
    ww, wg, gg = inner_products(pairs(parameters)).sum(0)
    cosine: Tensor = -wg / (ww * gg).sqrt()
    return cosine


def _perpendicular_(found: list[Pair], as_one: bool, restore_norm: bool) -> None:
    products = inner_products(found)
    if as_one:
        products = add_up(products)
    ww_P, wg_P, gg_P = products.unbind(1)
    usable_P = products.isfinite().all(1) & (ww_P > 0) & (gg_P > 0)
    along_P = torch.where(usable_P, -wg_P / ww_P, 0.0)
    left_P = gg_P + along_P * wg_P
    # On a GPU to look at them would be to wait for them.
    if products.is_cpu and not bool((usable_P & (left_P < _ILL * gg_P)).any()):
        scale_P = torch.where(usable_P & restore_norm, (gg_P / left_P).sqrt(), 1.0)
        combine_(found, scale_P, along_P * scale_P)
        return
    combine_(found, torch.ones_like(along_P), along_P)
    left_P = inner_products(found)[:, 2]
    if as_one:
        left_P = add_up(left_P)
    rounding_P = torch.tensor([_ROUNDINGS * torch.finfo(p.grad.dtype).eps for p in found], dtype=left_P.dtype)
    rounding_P = rounding_P.amax().expand_as(left_P) if as_one else rounding_P
    nothing_P = left_P <= rounding_P.to(left_P.device).square() * gg_P
    scale_P = torch.where(usable_P & restore_norm, (gg_P / left_P).sqrt(), 1.0).masked_fill(usable_P & nothing_P, 0.0)
    combine_(found, scale_P, torch.zeros_like(scale_P))
