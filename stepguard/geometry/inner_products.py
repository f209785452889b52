# shape suffixes: P = parameters
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

_BLOCK = 2**16
"""Elements that a processor's cache holds, so that all that is done with them reads them from memory once."""


_FINE = 1e-30, 1e30
"""Sums of squares within which float32 keeps its digits."""


class Pair(NamedTuple):
    """A parameter and its gradient as flat real tensors, those of this rank if they are sharded."""

    weight: Tensor
    grad: Tensor
    """Shares memory with the parameter's own gradient, unless ``home`` is given."""
    home: Tensor | None
    """Where the gradient has to be copied back to."""
    dim: int
    size: int
    groups: tuple[Any, ...]
    """Process groups over which it is sharded."""

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Weight and gradient in a dtype to compute in, and where the gradient belongs."""
        w, g = self.weight, self.grad
        if w.dtype == g.dtype and w.dtype in (torch.float32, torch.float64):
            if g.numel() <= _BLOCK or not g.is_cpu:  # by far the most
                yield w, g, g
                return
        dtype = torch.promote_types(torch.promote_types(w.dtype, g.dtype), torch.float32)
        size = _BLOCK if g.is_cpu else 2**26
        for part_w, part_g in zip(w.split(size), g.split(size), strict=True):
            yield part_w.to(dtype), part_g.to(dtype), part_g


def pairs(parameters: Tensor | Iterable[Tensor]) -> list[Pair]:
    """Each parameter that has a gradient, once.

    Raises:
        ValueError: If one of the gradients is sparse.
    """
    several = [parameters] if isinstance(parameters, Tensor) else parameters
    with_gradient = [p for p in dict.fromkeys(several) if p.grad is not None]
    for p in with_gradient:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"the gradient of a parameter of shape {tuple(p.shape)} is sparse, and perpendicular to the parameter "
                "it would not be. Make the layer with sparse=False, or leave this parameter out"
            )
    return [_pair(p) for p in with_gradient]


def inner_products(found: Sequence[Pair]) -> Tensor:
    """Of each pair w.w, w.g and g.g, ``[P, 3]`` in float64; of sharded ones, over all ranks."""
    if not found:
        return torch.zeros(0, 3, dtype=torch.float64)
    device = found[0].grad.device
    if all(p.grad.is_cpu for p in found):
        products = torch.tensor([_on_cpu(p) for p in found], dtype=torch.float64)
    else:
        products = torch.stack([_on_device(p).to(device) for p in found])
    for groups in {p.groups for p in found} - {()}:
        rows = torch.tensor([p.groups == groups for p in found], device=device)
        summed = products[rows]
        for group in groups:
            distributed.all_reduce(summed, group=group)
        products[rows] = summed
    return products


def add_up(of_each: Tensor) -> Tensor:
    """The sum over all parameters in the place of each."""
    return of_each.sum(0, keepdim=True).expand_as(of_each)


def combine_(found: Sequence[Pair], scale_P: Tensor, along_P: Tensor) -> None:
    """Put scale * g + along * w in the place of each g, which 1 and 0 leave as it is."""
    on_cpu = scale_P.is_cpu
    numbers = zip(scale_P.tolist(), along_P.tolist(), strict=True) if on_cpu else zip(scale_P, along_P, strict=True)
    for pair, (scale, along) in zip(found, numbers, strict=True):
        if on_cpu and scale == 1 and along == 0:
            continue
        for w, g, home in pair.blocks():
            if on_cpu:
                g = g.mul_(scale) if along == 0 else g.mul_(scale).add_(w, alpha=along)
            else:
                g = g.mul_(scale.to(g.dtype)).addcmul_(w, along.to(g.dtype))
            if g is not home:
                home.copy_(g)
        if pair.home is not None:
            pair.home.copy_(pair.grad.view(pair.home.shape))


def _pair(p: Tensor) -> Pair:
    w: Any = p
    g: Any = p.grad
    groups: tuple[Any, ...] = ()
    if p.is_contiguous() and g.is_contiguous() and type(g) is Tensor and not p.is_complex():  # by far the most
        return Pair(p.view(-1), g.view(-1), None, p.ndim, p.numel(), ())
    if hasattr(w, "to_local"):
        if w.placements != g.placements:
            raise ValueError(f"a parameter is placed as {w.placements}, but its gradient as {g.placements}")
        groups = tuple(w.device_mesh.get_group(i) for i, placed in enumerate(w.placements) if placed.is_shard())
        w, g = w.to_local(), g.to_local()
    if w.is_complex():
        w, g = torch.view_as_real(w.resolve_conj()), torch.view_as_real(g)
    # In the order in which the gradient lies in memory, so that flat it still is that memory.
    order = sorted(range(g.ndim), key=lambda i: -g.stride(i))
    if not g.is_contiguous():
        w, g = w.permute(order), g.permute(order)
    home = None if g.is_contiguous() else g
    return Pair(w.reshape(-1), g.reshape(-1), home, p.ndim, p.numel(), groups)


def _on_cpu(pair: Pair) -> tuple[float, float, float]:
    ww = wg = gg = 0.0
    for w, g, _ in pair.blocks():
        ww, wg, gg = ww + torch.dot(w, w).item(), wg + torch.dot(w, g).item(), gg + torch.dot(g, g).item()
    if not (_FINE[0] < ww < _FINE[1] and _FINE[0] < gg < _FINE[1]):  # float32 may have lost some of it
        ww = wg = gg = 0.0
        for w, g, _ in pair.blocks():
            w, g = w.double(), g.double()
            ww, wg, gg = ww + torch.dot(w, w).item(), wg + torch.dot(w, g).item(), gg + torch.dot(g, g).item()
    return ww, wg, gg


def _on_device(pair: Pair) -> Tensor:
    products = torch.zeros(3, dtype=torch.float64, device=pair.grad.device)
    for w, g, _ in pair.blocks():
        squares = [torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in (w, g)]
        products += torch.stack([squares[0], torch.dot(w, g).double(), squares[1]])
    return products
