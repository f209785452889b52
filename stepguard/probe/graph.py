from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def parameters_of(*tensors: Tensor) -> set[nn.Parameter]:
    """The parameters from which tensors were computed, as far as autograd knows."""
    found = (getattr(node, "variable", None) for node in _nodes([t.grad_fn for t in tensors]))
    return {variable for variable in found if isinstance(variable, nn.Parameter)}


def entered_unseen(outputs: Iterable[Tensor], inputs: Iterable[Tensor], start: int) -> bool:
    """Whether outputs depend on parameters by tensors from before ``start`` that are none of the inputs.

    Args:
        outputs: What a module returned.
        inputs: What it was given.
        start: Autograd's sequence number at its call.
    """
    known = {t.grad_fn for t in inputs}
    nodes = _nodes([t.grad_fn for t in outputs], known, start)
    early = [n for n in nodes if n._sequence_nr() < start and n not in known]
    found = (getattr(node, "variable", None) for node in _nodes(early))
    return any(isinstance(variable, nn.Parameter) for variable in found)


def in_backward() -> bool:
    """Whether a backward pass runs, so that a forward is a checkpoint's recomputation."""
    return torch._C._current_graph_task_id() != -1


def is_batched(gradient: Tensor) -> bool:
    """Whether it is one of many under vmap, or in ``torch.autograd.grad(is_grads_batched=True)``."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


def _nodes(starts: Iterable[Any], known: set[Any] = frozenset(), start: int = 0) -> set[Any]:  # type: ignore[assignment]
    """The nodes of autograd's graph from some on, as far as those that are known or older than a start."""
    todo, met = list(starts), set()
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if node not in known and node._sequence_nr() >= start:
            todo += [following for following, _ in node.next_functions]
    return met
