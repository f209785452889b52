# shape suffixes: N = inputs of a batch
from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stepguard.probe.structure import leaves

_KEPT = 8
"""Calls whose inputs are remembered up to the step."""


class InputSizes(NamedTuple):
    """How large the inputs of a batch are, by the Euclidean norm of each; lengths in the data's own unit."""

    number: int
    median: float
    largest: float


class Inputs:
    """What a model is given in a step, also in one that is not watched: to remember a batch costs next to nothing.

    The last batch is kept, those before it only as long as training itself has them: what is run for no step at all, or
    for another optimizer's, must not pile up.
    """

    def __init__(self) -> None:
        self._earlier: deque[list[weakref.ref[Tensor]]] = deque(maxlen=_KEPT - 1)
        self._last: list[Tensor] = []

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called with these; what is no data of floats, or comes of parameters, says nothing.

        Not if it is evaluated, perhaps over a whole data set.
        """
        if not module.training:
            return
        plain = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        given = args if plain else leaves(args, Tensor) + leaves(kwargs, Tensor)
        if known := [t for t in given if t.grad_fn is None and t.ndim and t.is_floating_point()]:
            if self._last:
                self._earlier.append([weakref.ref(t) for t in self._last])
            self._last = known

    def take(self) -> list[Tensor]:
        """All that are still there; forgotten here."""
        earlier = [t for given in self._earlier for ref in given if (t := ref()) is not None]
        found, self._last = earlier + self._last, []
        self._earlier.clear()
        return found


def input_sizes(given: Iterable[Tensor]) -> InputSizes | None:
    """How large the inputs are, with one wait for the device; None if there are none.

    Args:
        given: Tensors of the step, samples first. What differs in shape from the largest is something else.

    Example:
        >>> input_sizes([torch.tensor([[3.0, 4.0], [0.0, 1.0], [60.0, 80.0]])])
        InputSizes(number=3, median=5.0, largest=100.0)
    """
    tensors = list({id(t): t for t in given}.values())  # a module and the first one inside may both tell
    if not tensors:
        return None
    largest = max(tensors, key=lambda t: t[:1].numel())
    alike = [t for t in tensors if t.shape[1:] == largest.shape[1:] and t.device == largest.device and len(t)]
    with torch.no_grad():
        norms = [torch.linalg.vector_norm(t.flatten(1) if t.ndim > 1 else t[:, None], dim=1).float() for t in alike]
        norm_N = torch.cat(norms) if norms else torch.zeros(0)
        if not len(norm_N):
            return None
        median, most = torch.stack([norm_N.nanmedian(), norm_N.max()]).tolist()
    return InputSizes(len(norm_N), median, most)
