from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.probe import is_sharded, now, part_here


class Movement:
    """One optimizer step as a movement of the parameters: theta_old, then u = theta_new - theta_old.

    Two buffers of the parameters' size are kept and used again at every step.

    Attributes:
        params: All that the optimizer moves, group by group.
        groups: How many are in each of its parameter groups.
        old: Their values before the step; of those that are sharded, this rank's part of them.
        update: What the optimizer added.
        moment: When it was made.
    """

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self._here: list[Tensor] = []
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
        here = [part_here(p) for p in params]
        if not _fits(here, self.old):
            self.params, self.old, self.update = [], [], []  # and so they stay where there is no memory for others
            old, update = ([torch.empty_like(p) for p in here] for _ in range(2))
            self.old, self.update = old, update
        self.params, self._here = params, here
        torch._foreach_copy_(self.old, self._here)

    @torch.no_grad()
    def end(self) -> list[float]:
        """Find the update; return the norm of each parameter's part that is here, with one device sync."""
        self.moment = now()
        if self._here[0].is_cpu:  # one pass over memory less
            for p, old, update in zip(self._here, self.old, self.update, strict=True):
                torch.sub(p, old, out=update)
        else:
            torch._foreach_copy_(self.update, self._here)
            torch._foreach_sub_(self.update, self.old)
        return as_floats(torch._foreach_norm(self.update))

    @torch.no_grad()
    def length_before(self) -> float:
        """Norm of all parts that are here, before the optimizer moved them."""
        return math.hypot(*as_floats(torch._foreach_norm(self.old)))

    def by_group(self, norms: Sequence[float]) -> list[float]:
        """Norms of the parts, from those of :meth:`end`, of each parameter group as a whole."""
        each = iter(norms)
        return [math.hypot(*itertools.islice(each, size)) for size in self.groups]

    @torch.no_grad()
    def rescale(self, scale: float) -> None:
        """Put the parameters at theta_old + scale * u; exactly at theta_old for 0."""
        torch._foreach_copy_(self._here, self.old)
        if scale != 0:  # 0 * inf and 0 * nan would not be 0
            torch._foreach_add_(self._here, self.update, alpha=scale)


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
    return [(p, old) for m in late for p, old in zip(m.params, m.old, strict=True) if p in own and not is_sharded(p)]


def as_floats(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of a device, with one wait for it."""
    first = numbers[0].device
    if first.type == "cpu":
        return [float(n) for n in numbers]
    return torch.stack([n.to(first, torch.float32) for n in numbers]).tolist()


def _fits(params: list[Tensor], buffers: list[Tensor]) -> bool:
    return len(params) == len(buffers) and all(
        p.shape == b.shape and p.dtype == b.dtype and p.device == b.device for p, b in zip(params, buffers, strict=True)
    )
