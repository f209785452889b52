# shape suffixes: P = parameters
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from stepguard.geometry import pairs
from stepguard.geometry.families import Family, families
from stepguard.geometry.inner_products import combine_, inner_products, rounding
from stepguard.geometry.projection import projection, projections

Over = Literal["tensor", "all"]


@torch.no_grad()
def perp_grad_(
    parameters: Tensor | Iterable[Tensor],
    *,
    over: Over = "tensor",
    restore_norm: bool = True,
    matrices_only: bool = False,
) -> None:
    r"""Make gradients perpendicular to their weights, in place: perpGrad (arXiv 2501.04697, section 5).

    :math:`g \leftarrow g - \frac{\theta \cdot g}{\theta \cdot \theta} \theta`, before ``optimizer.step()``, so that
    no step scales the weights up for a smaller loss alone. Weight decay, momentum and Adam's own scaling come after it.

    - Scaled gradients give scaled results, so a GradScaler may unscale before or after.
    - Left as they are: gradients of zero weights; gradients that are not finite, for a GradScaler to find; with
      ``over="tensor"``, gradients of one element, of which nothing would be left.
    - Made exactly zero: gradients along their weights, of which only rounding would be left.
    - Sums are taken in float32 or finer; nothing waits for a GPU.
    - Sharded parameters (DTensor, as of ``fully_shard``) are taken whole: all ranks call this together. Shards that
      do not know of each other (FSDP1, ZeRO-3) would each be taken for a parameter of its own.

    Args:
        parameters: Those whose ``.grad`` is to change. None is skipped, and each is taken once.
        over: ``"tensor"``: each gradient against its own weights, as in the paper's code. ``"all"``: all of them as
            one vector, as in the paper.
        restore_norm: Make each, or the one vector, as long as it was, as in the paper's code. False with
            ``over="all"`` is the paper's equation 12.
        matrices_only: Only parameters of two dimensions and more, so no bias and no scale of a norm.

    Raises:
        ValueError: For another ``over``, or for a sparse gradient; before anything is changed.

    Example:
        >>> w = torch.tensor([[1.0, 0.0]], requires_grad=True)
        >>> w.grad = torch.tensor([[3.0, 4.0]])
        >>> perp_grad_(w)
        >>> w.grad
        tensor([[0., 5.]])
    """
    check_over(over)
    wanted = [p for p in _each(parameters) if p.ndim >= 2 or not matrices_only]
    if over == "tensor":
        for family in families([p for p in wanted if p.numel() > 1], to_change=True):
            _perp_each_(family, restore_norm)
        return
    found = families(wanted, to_change=True)
    for family, total in zip(found, _totals(found), strict=True):
        combine_(family, *projections(total, restore_norm))


@torch.no_grad()
def nlm_alignment(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Cosine of :math:`-g` with the weights, all parameters together as one vector.

    1 where training would only scale the weights up, the naive loss minimisation of arXiv 2501.04697, section 4.2;
    nan where there are no gradients, or only zeros. Of sharded parameters, all ranks call this together.

    Returns:
        Cosine, 0-dimensional, float64 where the device has it. Nothing waits for a GPU.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> w.grad = torch.tensor([-2.0, 0.0])
        >>> nlm_alignment(w)
        tensor(0.6000, dtype=torch.float64)
    """
    found = families(_each(parameters), to_change=False)
    return _cosine(_totals(found)[0])[0] if found else torch.tensor(math.nan, dtype=torch.float64)


@torch.no_grad()
def nlm_alignments(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    r"""Cosine of each :math:`-g` with its own weights, ``[P]`` in the order given; see :func:`nlm_alignment`.

    nan where there is no gradient, or only zeros. Twice the same parameter counts once.

    Example:
        >>> w, b = (torch.ones(2, requires_grad=True) for _ in range(2))
        >>> w.grad = torch.tensor([-3.0, -3.0])
        >>> nlm_alignments([w, b])
        tensor([1., nan], dtype=torch.float64)
    """
    each = _each(parameters)
    device = next((p.device for p in each if p.grad is not None), torch.device("cpu"))
    unknown = torch.full((), math.nan, dtype=pairs.finest(device), device=device)
    cosines = [unknown] * len(each)
    for family in families(each, to_change=False):
        places = (place for rows in family.rows for place in rows.at)
        for place, cosine in zip(places, _cosine(inner_products(family)), strict=True):
            cosines[place] = cosine.to(unknown)
    return torch.stack(cosines) if cosines else unknown.new_empty(0)


def check_over(over: str) -> None:
    """Raise a ValueError unless it is one of :data:`Over`."""
    if over not in get_args(Over):
        raise ValueError(f'over must be "tensor", each gradient by itself, or "all", as one vector; got {over!r}')


def _each(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return list(dict.fromkeys([parameters] if isinstance(parameters, Tensor) else parameters))


def _perp_each_(family: Family, restore_norm: bool) -> None:
    if not family.on_host or family.mesh is not None:
        combine_(family, *projections(inner_products(family), restore_norm))
        return
    for rows in family.rows:
        if rows.flat:  # one after the other, each while the cache still has it
            share = rounding(rows.grads[0])
            for w, g in zip(rows.weights, rows.grads, strict=True):
                ww, wg, gg = pairs.products(w, g)
                pairs.combine_(w, g, *projection(ww, wg, gg, share * gg, restore_norm))
        else:
            part = family._replace(rows=[rows])
            combine_(part, *projections(inner_products(part), restore_norm))


def _totals(found: list[Family]) -> list[Tensor]:
    """The sum over all parameters in the place of each, by family ``[4, P]``."""
    of_each = [inner_products(family) for family in found]
    sums_41 = [products_4P.sum(1, keepdim=True) for products_4P in of_each]
    return [torch.stack([s.to(own) for s in sums_41]).sum(0).expand_as(own) for own in of_each]


def _cosine(products_4P: Tensor) -> Tensor:
    ww_P, wg_P, gg_P, _ = products_4P
    cosine_P: Tensor = -wg_P / (ww_P.sqrt() * gg_P.sqrt())
    return cosine_P.clamp(-1.0, 1.0)
