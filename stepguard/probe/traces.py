from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Parameters, buffers and submodules are swapped by functional_call; hooks are nobody's memory.
_OWN = frozenset(vars(nn.Module())) - {"training"}
# What is larger is data rather than a memory of the last forward, and copying it at every step would cost.
_MOST_ITEMS, _MOST_ELEMENTS = 10_000, 1_000_000


@contextmanager
def no_traces(model: nn.Module, training: Sequence[bool] | None = None) -> Iterator[None]:
    """Let a forward run and put back what it left in the modules' own attributes.

    Counters, lists of features, recurrent states, metrics and private generators are as before, and no
    tensor of the replay stays behind in them. One level deep: an attribute, or what a list, dict or set
    in one holds; nothing that is large.

    Args:
        model: The module that runs.
        training: The mode of each of its modules while it runs; None is as it is.
    """
    attributes = [(m, {k: v for k, v in vars(m).items() if k not in _OWN}) for m in model.modules()]
    insides = [(v, _inside(v)) for _, found in attributes for v in found.values()]
    try:
        for (m, _), mode in zip(attributes, training or (), strict=False):
            m.training = mode
        yield
    finally:
        for module, found in attributes:
            for name in vars(module).keys() - _OWN - found.keys():
                del vars(module)[name]
            vars(module).update(found)
        for value, inside in insides:
            _put_back(value, inside)


def _inside(value: Any) -> Any:
    if isinstance(value, Tensor):
        kept = not value.requires_grad and value.numel() <= _MOST_ELEMENTS
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
