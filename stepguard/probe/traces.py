from __future__ import annotations

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
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
_MOST_ITEMS, _MOST_ELEMENTS, _MOST_ATTRIBUTES, _DEPTH = 10_000, 1_000_000, 64, 3
# Exactly these: a class of its own may not give out, or take, its items in the same way.
_CONTAINERS = (list, dict, set, deque, OrderedDict, defaultdict, Counter)
# Objects of these packages are parts of a program; those of the user's own are more likely to remember something.
_LIBRARIES = {
    "torch",
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "torchmetrics",
    "transformers",
    "accelerate",
}
_LIBRARIES |= {"numpy", "builtins", "stepguard", "tensorboard", "logging", "threading", "functools", "_thread"}


class Inside(NamedTuple):
    """Something that can change from within, and a copy of what was in it."""

    value: Any
    copy: Any

    @property
    def changed(self) -> bool:
        """Whether something else is in it by now."""
        if isinstance(self.value, Tensor):
            return bool(self.value._version != self.copy[0])
        now = _copy(self.value)
        if isinstance(now, Tensor):
            return not torch.equal(now, self.copy)
        if isinstance(now, (list, deque)):
            return len(now) != len(self.copy) or any(a is not b for a, b in zip(now, self.copy, strict=True))
        if isinstance(now, dict) and not _is_numpy(self.value, "Generator"):
            return list(now) != list(self.copy) or any(now[k] is not self.copy[k] for k in now)
        return bool(now != self.copy) if isinstance(now, set) else repr(now) != repr(self.copy)

    def put_back(self) -> None:
        """Have in it again what was in it."""
        if not self.changed:
            return  # another thread may be reading
        value = self.value
        if isinstance(value, Tensor):
            with torch.no_grad():
                value.copy_(self.copy[1])
        elif isinstance(value, torch.Generator):
            value.set_state(self.copy)
        elif isinstance(value, random.Random):
            value.setstate(self.copy)
        elif _is_numpy(value, "Generator"):
            value.bit_generator.state = self.copy
        elif _is_numpy(value, "RandomState"):
            value.set_state(self.copy)
        elif isinstance(value, (list, deque)):
            value.clear()
            value.extend(self.copy)
        else:
            target = value if isinstance(value, (dict, set)) else vars(value)
            target.clear()
            target.update(self.copy)


class Attribute(NamedTuple):
    """An attribute of a module, with what it held."""

    owner: nn.Module
    name: str
    value: Any
    inside: list[Inside]

    @property
    def changed(self) -> bool:
        """Whether it holds something else by now."""
        return vars(self.owner).get(self.name) is not self.value or any(i.changed for i in self.inside)

    def put_back(self) -> None:
        """Let it hold that again."""
        vars(self.owner)[self.name] = self.value
        for inside in self.inside:
            inside.put_back()


def attributes(modules: Iterable[nn.Module]) -> list[Attribute]:
    """What modules remember in plain attributes: counters, features, recurrent states, metrics, generators.

    A few levels deep: an attribute, what a container in one holds, and what an object of the user's own
    does; nothing that is large.
    """
    met: set[int] = set()
    return [
        Attribute(m, name, value, _insides(value, met))
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
    met: set[int] = set()
    insides = [inside for *_, value in elsewhere for inside in _insides(value, met)]
    try:
        yield
    finally:
        for module in model.modules():
            for name in [n for n in vars(module) if n not in _OWN and (module, n) not in known]:
                del vars(module)[name]
        errors: list[Exception] = []
        everything: list[Attribute | Inside] = [*found, *insides]
        for what in everything:
            try:
                what.put_back()
            except Exception as error:  # one that cannot be put back must not keep the others from it
                errors.append(error)
        for owner, name, value in elsewhere:
            if _read(owner, name) is not value:
                _write(owner, name, value)
        if errors:
            raise errors[0]


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


def _insides(value: Any, met: set[int], depth: int = _DEPTH) -> list[Inside]:
    """What can change in a value, and in what it holds."""
    if depth == 0 or value is None or isinstance(value, (str, bytes, int, float, type, nn.Module)) or id(value) in met:
        return []
    copy = _copy(value)
    if copy is None:
        return []
    met.add(id(value))
    held: Iterable[Any] = ()
    if isinstance(copy, dict):
        held = copy.values()
    elif type(value) in _CONTAINERS:
        held = copy
    return [Inside(value, copy), *(inside for item in held for inside in _insides(item, met, depth - 1))]


def _copy(value: Any) -> Any:
    """What is in something, by itself; None where nothing can change or it is not looked at."""
    if isinstance(value, Tensor):
        kept = not value.requires_grad and value.numel() <= _MOST_ELEMENTS and not value.is_inference()
        return (value._version, value.clone()) if kept else None
    if isinstance(value, torch.Generator):
        return value.get_state()
    if type(value) in _CONTAINERS:
        return value.copy() if len(value) <= _MOST_ITEMS else None
    if isinstance(value, random.Random):
        return value.getstate()
    if _is_numpy(value, "Generator"):
        return value.bit_generator.state
    if _is_numpy(value, "RandomState"):
        return value.get_state()
    library = type(value).__module__.split(".")[0] in _LIBRARIES
    if library or callable(value) or not 0 < len(getattr(value, "__dict__", ())) <= _MOST_ATTRIBUTES:
        return None
    return dict(vars(value))


def _is_numpy(value: Any, name: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy.random, name))
