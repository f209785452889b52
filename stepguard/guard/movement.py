from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.probe import now


class Movement:
    """One optimizer step as a movement of the parameters: theta_old, then u = theta_new - theta_old.

    Two buffers of the parameters' size are kept and used again at every step.

    Attributes:
        params: All that the optimizer moves, group by group.
        groups: How many are in each of its parameter groups.
        old: Their values before the step.
        update: What the optimizer added.
        moment: When it was made.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.groups: list[int] = []
        self.old: list[Tensor] = []
        self.update: list[Tensor] = []
        self.moment = -1
        _all.add(self)

    @torch.no_grad()
    def begin(self, optimizer: Optimizer) -> None:
        """Keep the parameters as they are before the optimizer moves them."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self.groups = [len(group["params"]) for group in optimizer.param_groups]
        if not _fits(params, self.params, self.old):
            self.params = params
            self.old = [torch.empty_like(p) for p in params]
            self.update = [torch.empty_like(p) for p in params]
        torch._foreach_copy_(self.old, self.params)

    @torch.no_grad()
    def end(self) -> list[float]:
        """Find the update; return the norm of each parameter's part, with one device sync."""
        self.moment = now()
        if self.params[0].is_cpu:  # one pass over memory less
            for p, old, update in zip(self.params, self.old, self.update, strict=True):
                torch.sub(p, old, out=update)
        else:
            torch._foreach_copy_(self.update, self.params)
            torch._foreach_sub_(self.update, self.old)
        return as_floats(torch._foreach_norm(self.update))

    def by_group(self, norms: list[float]) -> list[float]:
        """Norms of the parts, from those of :meth:`end`, of each parameter group as a whole."""
        each = iter(norms)
        return [math.hypot(*itertools.islice(each, size)) for size in self.groups]

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Put the parameters at theta_old + scale * u; exactly at theta_old for 0."""
        torch._foreach_copy_(self.params, self.old)
        if scale != 0:  # 0 * inf and 0 * nan would not be 0
            torch._foreach_add_(self.params, self.update, alpha=scale)


_all: WeakSet[Movement] = WeakSet()


def moved_since(moment: int, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What guarded optimizers have moved in a model after a moment, and where it was before they last did.

    Where several share a backward pass, the first to make its step moves the model under the others, whose updates are
    still to be seen from where their gradients were taken.
    """
    late = [movement for movement in list(_all) if movement.moment > moment]
    if not late:
        return []
    own = set(model.parameters())
    return [(p, old) for m in late for p, old in zip(m.params, m.old, strict=True) if p in own]


def as_floats(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, with one wait for it."""
    first = numbers[0].device
    if first.type == "cpu":
        return [float(n) for n in numbers]
    return torch.stack([n.to(first, torch.float32) for n in numbers]).tolist()


def _fits(params: list[Tensor], kept: list[Tensor], buffers: list[Tensor]) -> bool:
    return len(params) == len(kept) and all(
        p is q and p.shape == b.shape and p.dtype == b.dtype and p.device == b.device
        for p, q, b in zip(params, kept, buffers, strict=True)
    )
