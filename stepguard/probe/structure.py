from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Leaf = TypeVar("Leaf")
_DEPTH = 5  # batches and outputs nest less deeply; what does is a network of objects rather than data
_MOST_ATTRIBUTES = 64
_CLOSED = (Tensor, str, bytes, int, float, complex, type, nn.Module)


def map_leaves(
    value: Any, kind: type[Leaf] | tuple[type, ...], change: Callable[[Any], Any], depth: int = _DEPTH
) -> Any:
    """The same structure with every leaf of a kind changed; the very same object where nothing was.

    Looks into tuples, lists, dicts, dataclasses and plain objects, in an order that depends on the
    structure alone.

    Example:
        >>> import torch
        >>> map_leaves({"a": torch.ones(1), "b": (torch.zeros(1), "c")}, torch.Tensor, lambda t: t + 1)
        {'a': tensor([2.]), 'b': (tensor([1.]), 'c')}
    """
    if isinstance(value, kind):
        return change(value)
    if depth == 0 or value is None or isinstance(value, _CLOSED):
        return value
    if isinstance(value, dict):
        return _changed(value, value, kind, change, depth)
    if isinstance(value, (list, tuple)):
        items = [map_leaves(v, kind, change, depth - 1) for v in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if dataclasses.is_dataclass(value) or 0 < len(getattr(value, "__dict__", ())) <= _MOST_ATTRIBUTES:
        return _changed(value, getattr(value, "__dict__", {}), kind, change, depth)
    return value


def leaves(value: Any, kind: type[Leaf]) -> list[Leaf]:
    """Every leaf of a kind in a structure, in the order of :func:`map_leaves`.

    Example:
        >>> leaves([1.5, {"a": 2.5}, "x"], float)
        [1.5, 2.5]
    """
    found: list[Leaf] = []

    def keep(leaf: Leaf) -> Leaf:
        found.append(leaf)
        return leaf

    map_leaves(value, kind, keep)
    return found


def _changed(
    value: Any, old: dict[Any, Any], kind: type[Leaf] | tuple[type, ...], change: Callable[[Any], Any], depth: int
) -> Any:
    new = {key: map_leaves(item, kind, change, depth - 1) for key, item in old.items()}
    changes = {key: item for key, item in new.items() if item is not old[key]}
    if not changes:
        return value
    twin = copy.copy(value)
    if old is value:
        for key, item in changes.items():
            twin[key] = item
    else:
        vars(twin).update(changes)
    return twin
