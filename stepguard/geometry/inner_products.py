# shape suffixes: P = parameters of a family, K = those of some of its rows, N = numbers in each
from __future__ import annotations

import torch
from torch import Tensor, distributed

from stepguard.geometry import pairs
from stepguard.geometry.families import Family, Rows

_ROUNDINGS = 512
"""By how many roundings the sums over a block may be off, which are seen to be by some 50 to 100."""


def inner_products(family: Family) -> Tensor:
    """w.w, w.g, g.g and what of g.g may be rounding, ``[4, P]``; of sharded parameters over all ranks.

    Without waiting for a GPU, and with one all-reduce for each dimension of a mesh that something is sharded over.
    """
    products_4P = torch.cat([_products(rows, family.on_host) for rows in family.rows], 1)
    return products_4P if family.mesh is None else _over_ranks(products_4P, family)


def rounding(g: Tensor) -> float:
    """Share of g.g that may be rounding, of g or of sums, when nothing else is left of g."""
    return torch.finfo(g.dtype).eps ** 2 + _ROUNDINGS * torch.finfo(pairs.finest(g.device)).eps


def combine_(family: Family, along_P: Tensor, scale_P: Tensor) -> None:
    """Put (g + along * w) * scale in the place of each g; 0 and 1 leave it as it is."""
    sizes = [len(rows.at) for rows in family.rows]
    for rows, along_K, scale_K in zip(family.rows, along_P.split(sizes), scale_P.split(sizes), strict=True):
        if rows.flat:
            each = (n.tolist() if family.on_host else n.unbind() for n in (along_K, scale_K))
            for w, g, along, scale in zip(rows.weights, rows.grads, *each, strict=True):
                pairs.combine_(w, g, along, scale)
        else:
            first = rows.grads[0]
            w_KN, g_KN = _stacked(rows.weights), _stacked(rows.grads)
            new_KN = g_KN.addcmul_(w_KN, along_K.unsqueeze(1)).mul_(scale_K.unsqueeze(1))
            torch._foreach_copy_(rows.grads, new_KN.to(first.dtype).view(len(rows.at), *first.shape).unbind())


def _products(rows: Rows, on_host: bool) -> Tensor:
    both = zip(rows.weights, rows.grads, strict=True)
    if not rows.flat:
        w_KN, g_KN = _stacked(rows.weights), _stacked(rows.grads)
        found = torch.stack([torch.linalg.vecdot(a, b) for a, b in ((w_KN, w_KN), (w_KN, g_KN), (g_KN, g_KN))])
    elif on_host:
        found = torch.tensor([pairs.products(w, g) for w, g in both], dtype=torch.float64).T
    else:
        found = torch.stack([pairs.products_unseen(w, g) for w, g in both], 1)
    return torch.cat([found, found[2:] * rounding(rows.grads[0])])


def _over_ranks(products_4P: Tensor, family: Family) -> Tensor:
    at = [place for rows in family.rows for place in rows.at]
    placements = [rows.placements for rows in family.rows for _ in rows.at]
    # Ranks whose parts differ in size may have sorted them into other rows.
    order = sorted(range(len(at)), key=at.__getitem__)
    for dim in range(family.mesh.ndim):
        copied = [placed[dim].is_replicate() for placed in placements]
        if not all(copied):
            copies = family.mesh.size(dim)
            columns = [n / copies if c else n for n, c in zip(products_4P.unbind(1), copied, strict=True)]
            summed_4P = torch.stack([columns[i] for i in order], 1)
            distributed.all_reduce(summed_4P, group=family.mesh.get_group(dim))
            back = dict(zip(order, summed_4P.unbind(1), strict=True))
            products_4P = torch.stack([back[i] for i in range(len(at))], 1)
    return products_4P


def _stacked(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).to(pairs.finest(tensors[0].device)).reshape(len(tensors), tensors[0].numel())
