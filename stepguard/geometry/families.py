from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_SMALL = 2**16
"""Numbers up to which a parameter by itself is too little work for a GPU."""
_FULL = 2**21
"""Numbers that are enough for it."""


@dataclass
class Rows:
    """Parameters beside their gradients, real; of sharded ones what this rank has."""

    flat: bool
    """Each by itself, as a vector on its own memory; else alike in shape, to be stacked."""
    placements: tuple[Any, ...]
    """How they are sharded over each dimension of their mesh."""
    at: list[int] = field(default_factory=list)
    """Their places among all parameters."""
    weights: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)


class Family(NamedTuple):
    """The parameters of one device or, sharded, of one mesh of devices."""

    on_host: bool
    """Whether a number can be looked at without waiting for it."""
    mesh: Any
    rows: list[Rows]


def families(parameters: Sequence[Tensor], to_change: bool) -> list[Family]:
    """All parameters with a gradient, so that few calls do for many.

    Raises:
        ValueError: If a gradient is to be changed and sparse.
    """
    for p in parameters:
        if to_change and p.grad is not None and p.grad.layout != torch.strided:
            raise ValueError(
                f"the gradient of a parameter of shape {tuple(p.shape)} is sparse, and would not be without what is "
                "along the parameter; make it dense, as nn.Embedding(..., sparse=False) does, or leave it out"
            )
    found: dict[Hashable, Family] = {}
    latest: dict[Hashable, Rows] = {}
    for place, p in enumerate(parameters):
        if p.grad is None:
            continue
        w, g, mesh, placements = _here(p, p.grad, to_change)
        device = g.device
        on_host = _is_host(device)
        # A processor is busy enough with one at a time, and its cache then holds it.
        flat = _flat(w, g) if on_host or g.numel() > _SMALL else None
        kind = (device, mesh, placements, w.dtype, g.dtype, None if flat else g.shape)
        rows = latest.get(kind)
        if rows is None or (flat is None and len(rows.at) * g.numel() >= _FULL):
            rows = latest[kind] = Rows(flat is not None, placements)
            found.setdefault((device, mesh), Family(on_host, mesh, [])).rows.append(rows)
        w, g = flat or (w, g)
        rows.at.append(place)
        rows.weights.append(w)
        rows.grads.append(g)
    return list(found.values())


def _is_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _here(w: Any, g: Any, to_change: bool) -> tuple[Tensor, Tensor, Any, tuple[Any, ...]]:
    """Weight and gradient as this rank has them, and how they are sharded."""
    if type(g) is Tensor and g.layout is torch.strided and not w.is_complex():  # by far the most
        return w, g, None, ()
    p, mesh, placements = w, None, ()
    if hasattr(w, "to_local"):  # a DTensor, recognised without loading where it is from
        mesh, placements = w.device_mesh, tuple(w.placements)
        if tuple(g.placements) != placements:  # sums over ranks that nobody has taken yet
            g = g.redistribute(mesh, placements)
            if to_change:
                p.grad = g
        w, g = w.to_local(), g.to_local()
    if g.layout != torch.strided:
        g = g.to_dense()
    if w.is_complex():
        if g.is_conj():  # as autograd may leave it: conjugated only when it is read
            w, g = w.conj(), g.conj()
        w, g = torch.view_as_real(w.resolve_conj()), torch.view_as_real(g)
    return w, g, mesh, placements


def _flat(w: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as they lie in memory, if they lie there alike and without gaps."""
    if not (w.is_contiguous() and g.is_contiguous()):
        order = sorted(range(g.ndim), key=g.stride, reverse=True)
        w, g = w.permute(order), g.permute(order)
        if not (w.is_contiguous() and g.is_contiguous()):
            return None
    return (w, g) if g.ndim == 1 else (w.view(-1), g.view(-1))
