from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from stepguard.probe.swapping import HALVES, data_replaced, replaced
from stepguard.probe.values import Move, Values


class Whole:
    """Of a model whose parameters are all here.

    Args:
        model: The attached module.
        moves: What the optimizer did.
    """

    def __init__(self, model: nn.Module, moves: Sequence[Move]):
        self._model, self._moves, self.moved = model, moves, {p for p, _, _ in moves}
        self.half = any(p.dtype in HALVES for p in model.parameters())

    @contextmanager
    def along(self) -> Iterator[Values]:
        duals = {p: forward_ad.make_dual(old, u) for p, old, u in self._moves}
        with replaced(self._model, duals):
            yield Values(duals)

    @contextmanager
    def at(self, scale: float) -> Iterator[Values]:
        if not self.half:
            with self.beside(scale) as values:
                yield values
            return
        moved = {p: old.to(torch.float32, copy=True).add_(u, alpha=scale) for p, old, u in self._moves}
        moved |= {p: p.detach().float() for p in self._model.parameters() if p not in moved}
        with replaced(self._model, moved, upcast=True):
            yield Values(moved, upcast=True)

    @contextmanager
    def beside(self, scale: float) -> Iterator[Values]:
        with self._moved_by(scale) as moved, data_replaced(self._model, moved):
            yield Values({}, borrowed=[value for _, value in moved])

    @contextmanager
    def leaves(self) -> Iterator[Values]:
        """At the values before the step, in full precision, as leaves of a graph of which no parameter knows.

        Raises:
            RuntimeError: Of a model with scripted modules, whose parameters stay where they are.
        """
        if any(isinstance(m, torch.jit.ScriptModule) for m in self._model.modules()):
            raise RuntimeError("no other parameters can be put into a scripted module")
        values: dict[Tensor, Tensor] = {p: _exact(p.detach()) for p in self._model.parameters()}
        values |= {p: _exact(old.detach()).requires_grad_() for p, old, _ in self._moves}
        with replaced(self._model, values, upcast=self.half):
            yield Values(values, upcast=self.half, graph=True)

    @contextmanager
    def before(self) -> Iterator[Values]:
        with data_replaced(self._model, [(p, old) for p, old, _ in self._moves]):
            yield Values({})

    @contextmanager
    def _moved_by(self, scale: float) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Parameters, and theta_old + scale * u: in the memory of u, which is found again afterwards, to the bit."""
        if not scale:
            yield [(p, old) for p, old, _ in self._moves]
            return
        try:
            for _, old, u in self._moves:
                torch.add(old, u, alpha=scale, out=u)
            yield [(p, u) for p, _, u in self._moves]
        finally:
            for p, old, u in self._moves:
                torch.sub(p.detach(), old, out=u)


def _exact(value: Tensor) -> Tensor:
    return value.float() if value.dtype in HALVES else value
