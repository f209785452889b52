"""One parameter and its gradient, as vectors that lie in memory as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_BLOCK, _BLOCK_ELSEWHERE = 2**18, 2**21
"""Numbers that a cache holds, so that memory is read once for all that is done with them."""
_SAFE = 1e-25, 1e30
"""Sums of squares of which float32 loses nothing."""
_OBLIQUE = 0.99
"""Squared cosine up to which sums in float32 tell what is left of a gradient, to 1e-5 or better."""


def products(w: Tensor, g: Tensor) -> tuple[float, float, float]:
    """w.w, w.g and g.g, on a processor.

    Example:
        >>> products(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0]))
        (5.0, 3.0, 9.0)
    """
    dtype = _enough(w, g)
    ww, wg, gg = _sums(w, g, dtype)
    if dtype is torch.float64 or (
        _SAFE[0] < ww < _SAFE[1] and _SAFE[0] < gg < _SAFE[1] and wg * wg < _OBLIQUE * ww * gg
    ):
        return ww, wg, gg
    # Always in float64 would be half as fast.
    return _sums(w, g, torch.float64)


def products_unseen(w: Tensor, g: Tensor) -> Tensor:
    """The same on another device, ``[3]``, without waiting for it."""
    dtype = finest(g.device)
    total = torch.zeros(3, dtype=dtype, device=g.device)
    for block_w, block_g in _blocks(w, g):
        a, b = block_w.to(dtype), block_g.to(dtype)
        total += torch.stack([a.dot(a), a.dot(b), b.dot(b)])
    return total


def combine_(w: Tensor, g: Tensor, along: Tensor | float, scale: Tensor | float) -> None:
    """Put (g + along * w) * scale in the place of g; 0 and 1 leave it as it is.

    Example:
        >>> g = torch.tensor([3.0, 4.0])
        >>> combine_(torch.tensor([1.0, 0.0]), g, -3.0, 1.25)
        >>> g
        tensor([0., 5.])
    """
    if not isinstance(along, Tensor):
        if along == 0.0 and scale == 1.0:
            return
        if w.dtype is g.dtype is torch.float32 and g.numel() <= _BLOCK:  # by far the most
            g.add_(w, alpha=along)
            if scale != 1.0:
                g.mul_(scale)
            return
    dtype = _enough(w, g)
    for block_w, block_g in _blocks(w, g):
        new = block_g if block_g.dtype is dtype else block_g.to(dtype)
        # g * scale first could leave the range of the dtype.
        new = new.addcmul_(block_w, along) if isinstance(along, Tensor) else new.add_(block_w, alpha=along)
        new.mul_(scale)
        if new is not block_g:
            block_g.copy_(new)


def finest(device: torch.device) -> torch.dtype:
    """The dtype to take sums in."""
    return torch.float32 if device.type == "mps" else torch.float64


def _sums(w: Tensor, g: Tensor, dtype: torch.dtype) -> tuple[float, float, float]:
    if w.dtype is g.dtype is dtype and g.numel() <= _BLOCK:  # by far the most
        wg = w.dot(g).item()  # first: two streams come from memory faster than one after the other
        return w.dot(w).item(), wg, g.dot(g).item()
    ww = wg = gg = 0.0
    for block_w, block_g in _blocks(w, g):
        a = block_w if block_w.dtype is dtype else block_w.to(dtype)
        b = block_g if block_g.dtype is dtype else block_g.to(dtype)
        wg, ww, gg = wg + a.dot(b).item(), ww + a.dot(a).item(), gg + b.dot(b).item()
    return ww, wg, gg


def _blocks(w: Tensor, g: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    size = _BLOCK if g.is_cpu else _BLOCK_ELSEWHERE
    return ((w, g),) if g.numel() <= size else zip(w.split(size), g.split(size), strict=True)


def _enough(w: Tensor, g: Tensor) -> torch.dtype:
    """The dtype to compute in."""
    if w.dtype is g.dtype is torch.float32:  # by far the most
        return torch.float32
    return torch.promote_types(torch.promote_types(w.dtype, g.dtype), torch.float32)
