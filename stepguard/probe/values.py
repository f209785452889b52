from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from torch import Tensor

Move = tuple[Tensor, Tensor, Tensor]
"""A parameter as the step left it, its value before that, and the difference: its update; of shards, this rank's."""


class Values(NamedTuple):
    """Parameters that are elsewhere."""

    by_parameter: dict[Tensor, Tensor]
    """What to take for one that is met outside of modules."""
    upcast: bool = False
    """Whether they are in full precision where the model's are not, so that inputs must be as well."""
    borrowed: Sequence[Tensor] = ()
    """Memory that will hold something else afterwards."""
    graph: bool = False
    """Whether they are of a graph of our own, and nobody else's."""


class Elsewhere(Protocol):
    """Parameters of a model at other points than where they are, while a context lasts.

    Attributes:
        half: Whether it computes in half precision, so that a difference of its logits has no digits.
        moved: The parameters that the update moves.
    """

    half: bool
    moved: set[Tensor]

    def along(self) -> AbstractContextManager[Values]:
        """At the values before the step, as dual tensors with the update as tangent; at a dual level."""

    def at(self, scale: float) -> AbstractContextManager[Values]:
        """At theta_old + scale * u, in full precision."""

    def beside(self, scale: float) -> AbstractContextManager[Values]:
        """The same, in the dtype and with the kernels of training."""

    def before(self) -> AbstractContextManager[Values]:
        """As training had them."""
