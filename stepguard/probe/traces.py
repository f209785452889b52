from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CellType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stepguard.probe.callables import places

# Parameters, buffers and submodules are others' business; hooks are nobody's memory.
_OWN = frozenset(vars(nn.Module())) - {"training"}
# What is larger is data rather than a memory of the last forward, and copying it at every step would cost.
_MOST_ITEMS, _MOST_ELEMENTS = 10_000, 1_000_000


class Attribute(NamedTuple):
    """An attribute of a module, with what it held."""

    owner: nn.Module
    name: str
    value: Any
    inside: Any

    @property
    def changed(self) -> bool:
        """Whether it holds something else by now."""
        if vars(self.owner).get(self.name) is not self.value:
            return True
        if self.inside is None:
            return False
        if isinstance(self.value, Tensor):
            return bool(self.value._version != self.inside[0])
        now = _inside(self.value)
        if isinstance(self.value, torch.Generator):
            return not torch.equal(now, self.inside)
        if len(now) != len(self.inside) or isinstance(now, set):
            return bool(now != self.inside)
        pairs = zip(now.items(), self.inside.items(), strict=True) if isinstance(now, dict) else [(now, self.inside)]
        return any(a is not b for one, other in pairs for a, b in zip(one, other, strict=True))

    def put_back(self) -> None:
        """Let it hold that again."""
        vars(self.owner)[self.name] = self.value
        _put_back(self.value, self.inside)


def attributes(modules: Iterable[nn.Module]) -> list[Attribute]:
    """What modules remember in plain attributes: counters, features, recurrent states, metrics, generators.

    One level deep: an attribute, or what a list, dict or set in one holds; nothing that is large.
    """
    return [
        Attribute(m, name, value, _inside(value))
        for m in modules
        for name, value in vars(m).items()
        if name not in _OWN
    ]


@contextmanager
def no_traces(model: nn.Module) -> Iterator[None]:
    """Let a forward run and put back what it left behind, in its modules' attributes or in the reach of its hooks.

    No tensor of the replay stays behind in them.
    """
    found = attributes(model.modules())
    known = {(m, name) for m, name, *_ in found}
    elsewhere = [(owner, name, _read(owner, name)) for owner, name in places(model)]
    insides = [(value, _inside(value)) for *_, value in elsewhere]
    try:
        yield
    finally:
        for module in model.modules():
            for name in [n for n in vars(module) if n not in _OWN and (module, n) not in known]:
                del vars(module)[name]
        for attribute in found:
            attribute.put_back()
        for owner, name, value in elsewhere:
            if _read(owner, name) is not value:
                _write(owner, name, value)
        for value, inside in insides:
            _put_back(value, inside)


_EMPTY = object()


def _read(owner: Any, name: str) -> Any:
    if isinstance(owner, CellType):
        try:
            return owner.cell_contents
        except ValueError:  # not assigned yet
            return _EMPTY
    return owner.get(name, _EMPTY)


def _write(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, CellType):
        if value is not _EMPTY:
            owner.cell_contents = value
    elif value is _EMPTY:
        del owner[name]
    else:
        owner[name] = value


def _inside(value: Any) -> Any:
    if isinstance(value, Tensor):
        kept = not value.requires_grad and value.numel() <= _MOST_ELEMENTS and not value.is_inference()
        return (value._version, value.clone()) if kept else None
    if isinstance(value, torch.Generator):
        return value.get_state()
    kept = isinstance(value, (list, dict, set, deque)) and len(value) <= _MOST_ITEMS
    return value.copy() if kept else None


def _put_back(value: Any, inside: Any) -> None:
    if inside is None:
        return
    if isinstance(value, Tensor):
        version, copy = inside
        if value._version != version:
            with torch.no_grad():
                value.copy_(copy)
    elif isinstance(value, torch.Generator):
        value.set_state(inside)
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(inside)
    else:
        value.clear()
        value.update(inside)
