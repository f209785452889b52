from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from stepguard.probe.lending import Lending
from stepguard.probe.sharding import Unit, from_fsdp
from stepguard.probe.structure import map_leaves
from stepguard.probe.swapping import HALVES, replaced
from stepguard.probe.values import Move, Values

Put = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From a parameter, its value before the step and its update, if it has one, to what takes its place."""


class Sharded:
    """Of a model that ``fully_shard`` has spread over all ranks.

    Its own hooks gather parameters and know nothing of others, so they are left out, and each unit borrows what it
    needs for as long as its forward lasts. That takes the memory of two units in full precision, whatever the model's.

    Args:
        model: The attached module.
        moves: What the optimizer did with this rank's parts.
        units: Of the model.
        lend: Where whole parameters come from.
    """

    def __init__(self, model: nn.Module, moves: Sequence[Move], units: Sequence[Unit], lend: Lending):
        self._model, self._units, self._lend = model, units, lend
        self.moved = {p for p, _, _ in moves}
        mine = {p for unit in units for p in unit.slots}
        self._others = [move for move in moves if move[0] not in mine]
        self.half = any(p.dtype in HALVES for p in model.parameters()) or any(u.computes_in in HALVES for u in units)

    @contextmanager
    def along(self) -> Iterator[Values]:
        def dual(_: Tensor, old: Tensor, u: Tensor | None) -> Tensor:
            return old if u is None else forward_ad.make_dual(old, u)

        with self._placed(dual, upcast=False) as values:
            yield values

    @contextmanager
    def at(self, scale: float) -> Iterator[Values]:
        def full(_: Tensor, old: Tensor, u: Tensor | None) -> Tensor:
            exact = old.float() if old.dtype in HALVES else old
            return exact if u is None else exact.add(u, alpha=scale)

        with self._placed(full, upcast=self.half) as values:
            yield values

    @contextmanager
    def beside(self, scale: float) -> Iterator[Values]:
        with self.at(scale) as values:
            yield values

    @contextmanager
    def before(self) -> Iterator[Values]:
        def parameter(p: Tensor, old: Tensor, _: Tensor | None) -> Tensor:
            return nn.Parameter(old, requires_grad=p.requires_grad)

        with self._placed(parameter, upcast=False, as_trained=True) as values:
            yield values

    @contextmanager
    def _placed(self, put: Put, upcast: bool, as_trained: bool = False) -> Iterator[Values]:
        others = {p: put(p, old, u) for p, old, u in self._others}
        with replaced(self._model, others, upcast), ExitStack() as stack:
            for unit in self._units:
                stack.enter_context(self._borrowing(unit, put, as_trained))
            yield Values(others, upcast)

    @contextmanager
    def _borrowing(self, unit: Unit, put: Put, as_trained: bool) -> Iterator[None]:
        """Have whole parameters in the modules of a unit, while its forward lasts."""

        def give_back() -> None:
            for p, slots in unit.slots.items():
                for module, name in slots:
                    module._parameters[name] = p  # type: ignore[assignment]

        def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for p, (old, u) in self._lend.whole(unit).items():
                    value = put(p, old, u)
                    value = _cast(unit.computes_in, value) if as_trained else value
                    for module, name in unit.slots[p]:
                        module._parameters[name] = value  # type: ignore[assignment]
            to = unit.computes_in if as_trained and unit.casts_inputs else None
            return _cast_all(to, args), _cast_all(to, kwargs)

        def leave(_: nn.Module, __: Any, output: Any) -> Any:
            give_back()
            return _cast_all(unit.gives if as_trained else None, output)

        with _instead(unit.module._forward_pre_hooks, enter), _instead(unit.module._forward_hooks, leave):
            try:
                yield
            finally:
                give_back()


@contextmanager
def _instead(hooks: dict[int, Any], ours: Callable[..., Any]) -> Iterator[None]:
    """Put a hook of ours in the very place of FSDP's."""
    ((place, theirs),) = [(place, hook) for place, hook in hooks.items() if from_fsdp(hook)]
    hooks[place] = ours
    try:
        yield
    finally:
        hooks[place] = theirs


def _cast(to: torch.dtype | None, tensor: Tensor) -> Tensor:
    if to is None or not tensor.is_floating_point() or tensor.dtype == to:
        return tensor
    cast = tensor.detach().to(to)
    return nn.Parameter(cast, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else tensor.to(to)


def _cast_all(to: torch.dtype | None, values: Any) -> Any:
    return values if to is None else map_leaves(values, (Tensor,), partial(_cast, to))
