from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepguard.guard.movement import as_floats
from stepguard.probe import part_here


class Checked(NamedTuple):
    """What a look at all gradients has found."""

    sound: bool
    """Whether all are finite."""
    norm: float | None
    """The Euclidean norm of all together; None where a GradScaler has yet to take its factor out."""


@torch.no_grad()
def check_gradients(optimizer: Optimizer, share: Callable[[Tensor], float] = lambda p: 1.0) -> Checked:
    """Look at all gradients; of those that are sharded, at what this rank has of them.

    Args:
        optimizer: Which is given them.
        share: Of a parameter, what part of its square counts, where other ranks have the same.
    """
    if getattr(optimizer, "found_inf", None) is not None:
        return Checked(True, None)  # a GradScaler has looked already, and the optimizer heeds it
    found = gradients_of(optimizer)
    here = [part_here(g) for _, g in found]
    values = [g.coalesce().values() if g.is_sparse else g for g in here]
    if not values:
        return Checked(True, 0.0)
    norms = as_floats(torch._foreach_norm(values))
    norm = math.hypot(*(n * math.sqrt(share(p)) for n, (p, _) in zip(norms, found, strict=True)))
    # Almost always enough; finite values whose squares overflow are looked at one by one.
    return Checked(math.isfinite(norm) or all(bool(g.isfinite().all()) for g in values), norm)


def gradients_of(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """All gradients, with their parameters."""
    return [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def withhold_gradients(held: list[tuple[Tensor, Tensor]]) -> None:
    """Keep these from the optimizer: it passes over parameters without one, and its state stays sound."""
    for p, _ in held:
        p.grad = None


def return_gradients(held: list[tuple[Tensor, Tensor]]) -> None:
    """Give back what :func:`withhold_gradients` took."""
    for p, gradient in held:
        p.grad = gradient
