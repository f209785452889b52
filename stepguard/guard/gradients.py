from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepguard.guard.movement import as_floats
from stepguard.probe import part_here


@torch.no_grad()
def are_sound(optimizer: Optimizer) -> bool:
    """Whether all gradients are finite; of those that are sharded, what this rank has of them."""
    if getattr(optimizer, "found_inf", None) is not None:
        return True  # a GradScaler has looked already, and the optimizer heeds it
    here = [part_here(g) for _, g in gradients_of(optimizer)]
    values = [g.coalesce().values() if g.is_sparse else g for g in here]
    return not values or math.isfinite(_norm(values)) or all(bool(g.isfinite().all()) for g in values)


def gradients_of(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """All gradients, with their parameters."""
    return [(p, p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def withhold_gradients(held: list[tuple[Tensor, Tensor]]) -> None:
    """Keep these from the optimizer, which passes over parameters without one: its state stays sound."""
    for p, _ in held:
        p.grad = None


def return_gradients(held: list[tuple[Tensor, Tensor]]) -> None:
    """Give back what :func:`withhold_gradients` took."""
    for p, gradient in held:
        p.grad = gradient


def _norm(tensors: list[Tensor]) -> float:
    # Fast and almost always enough; finite values whose squares overflow are looked at one by one.
    return sum(as_floats(torch._foreach_norm(tensors)))
