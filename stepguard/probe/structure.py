from __future__ import annotations

import copy
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Leaf = TypeVar("Leaf")
Kind = type[Any] | tuple[type[Any], ...]
_DEPTH = 6  # batches and outputs nest less deeply; what does is a network of objects rather than data
_MOST_ATTRIBUTES = 64
_CLOSED = (Tensor, str, bytes, int, float, complex, type, nn.Module)


def map_leaves(value: Any, kind: Kind, change: Callable[[Any], Any], fresh: bool = False, depth: int = _DEPTH) -> Any:
    """The same structure with every leaf of a kind changed; the very same object where nothing was.

    Looks into tuples, lists, dicts, dataclasses and plain objects, in an order that depends on the
    structure alone.

    Args:
        value: The structure.
        kind: Type of the leaves.
        change: From a leaf to what takes its place.
        fresh: Make every container anew, so that the structure may be changed without changing ``value``.
        depth: How deep to look.

    Example:
        >>> import torch
        >>> map_leaves({"a": torch.ones(1), "b": (torch.zeros(1), "c")}, torch.Tensor, lambda t: t + 1)
        {'a': tensor([2.]), 'b': (tensor([1.]), 'c')}
    """
    if isinstance(value, kind):
        return change(value)
    if depth == 0 or value is None or isinstance(value, _CLOSED):
        return value

    def mapped(item: Any) -> Any:
        return map_leaves(item, kind, change, fresh, depth - 1)

    if isinstance(value, (list, tuple, deque)):
        items = [mapped(v) for v in value]
        if all(new is old for new, old in zip(items, value, strict=True)) and (isinstance(value, tuple) or not fresh):
            return value
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, (set, frozenset)):
        return copy.copy(value) if fresh and isinstance(value, set) else value
    found = value if isinstance(value, dict) else _fields(value)
    changes = {key: new for key, old in found.items() if (new := mapped(old)) is not old}
    if not changes and not (fresh and isinstance(value, dict)):
        return value
    twin = copy.copy(value)
    for key, item in changes.items():
        if isinstance(value, dict):
            twin[key] = item
        else:
            object.__setattr__(twin, key, item)
    return twin


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


def _fields(value: Any) -> dict[str, Any]:
    """The attributes of a plain object; none of what is rather a part of a program."""
    if dataclasses.is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if hasattr(value, f.name)}
    found = getattr(value, "__dict__", {})
    return dict(found) if len(found) <= _MOST_ATTRIBUTES and not callable(value) else {}
