from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from stepguard.probe.memory import Buffer
from stepguard.probe.random_state import RandomState
from stepguard.probe.reasons import BATCH_CHANGED
from stepguard.probe.structure import leaves
from stepguard.probe.traces import Attribute

# A training step as stepguard sees it: the outermost calls of modules, whose inside is nobody's business, and
# the functions of PyTorch that lead from one to the next and on to the loss. A tensor that one of these made is
# kept as a Ref to it, so that an outline holds the batch but no activation.

_order = itertools.count()
now = partial(next, _order)
"""A moment, to be compared with the ``order`` of steps."""
_SAMPLE_SIZE = 256
_MOST_KEPT = 2**25
"""Logits up to which a tensor of them may outlive the backward pass that it was made for."""
_OUTPUTS = 4


class UntraceableError(ValueError):
    """Logits depend on parameters in a way that cannot be run again."""


@dataclass(frozen=True)
class Ref:
    """A tensor that a step made, without the tensor."""

    node: Step
    leaf: int


class Held:
    """A tensor that was there before the step: a batch, a label, a mask."""

    __slots__ = ("__weakref__", "_tensor", "_version")

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = tensor, version(tensor)

    @property
    def tensor(self) -> Tensor:
        """The tensor.

        Raises:
            UntraceableError: If it is no longer what it was.
        """
        if version(self._tensor) != self._version:
            raise UntraceableError(BATCH_CHANGED)
        return self._tensor

    def keep_copy(self, tensor: Tensor) -> None:
        """Hold a copy, if it is this one that is held, before it may be changed."""
        if self._tensor is tensor:
            self._tensor = tensor.detach().clone()
            self._version = version(self._tensor)


class HeldGenerator:
    """A random generator, and its state before the step."""

    __slots__ = ("generator", "state")

    def __init__(self, generator: torch.Generator):
        self.generator, self.state = generator, generator.get_state()


@dataclass(eq=False)
class Step:
    """A call that a training step made, enough to make it again; tensors made before are Refs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: torch.dtype | None
    random: RandomState | None = None
    """The generators as the call found them; None if it draws nothing."""
    order: int = field(default_factory=lambda: next(_order))

    @cached_property
    def inputs(self) -> list[Ref]:
        """What it takes from earlier steps."""
        return leaves(self.args, Ref) + leaves(self.kwargs, Ref)


@dataclass(eq=False)
class FunctionCall(Step):
    """A call of a PyTorch function, outside of any module."""

    function: Callable[..., Any] = torch.clone
    in_place: bool = False
    """Whether its first argument is what it changes, and returns."""
    writes: bool = False
    """Whether it changes another one, such as running averages."""

    @property
    def name(self) -> str:
        """The function's name, a property's where it is one."""
        return function_name(self.function)


@dataclass(eq=False)
class ModuleCall(Step):
    """An outermost call of a module."""

    module: nn.Module = field(default_factory=nn.Module)
    training: list[bool] = field(default_factory=list)
    """The mode of every submodule."""
    memory: list[Buffer | Attribute] = field(default_factory=list)
    """What it remembered from the forward before."""
    samples: list[Tensor] = field(default_factory=list)
    """Of its first floating outputs."""
    writes: bool = False
    """Whether it changes what it is given."""
    under_grad: bool = True
    others: int = 0
    """How often parameters that the optimizer does not move had been changed."""

    @property
    def name(self) -> str:
        """The class of the module."""
        return type(self.module).__name__


def kept_logits(tensor: Tensor) -> KeptLogits | None:
    """The logits for later, if they are in full precision and not too many."""
    if tensor.dtype in (torch.float32, torch.float64) and tensor.numel() <= _MOST_KEPT:
        return KeptLogits(tensor)
    return None


class KeptLogits:
    """Logits that training made, as long as nobody changes them."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = tensor.detach(), version(tensor)

    @property
    def tensor(self) -> Tensor | None:
        """The tensor; None if it is no longer what it was."""
        return self._tensor if version(self._tensor) == self._version else None


@dataclass(eq=False)
class SoftmaxCall:
    """A softmax that a training step took of logits."""

    call: FunctionCall | UntraceableError
    """The function that took it."""
    sample: Tensor
    """Of what entered it."""
    used: Tensor | None = None
    """Which of its samples the loss went on with, where it has a result for each; None is all of them."""
    logits: KeptLogits | None = None
    """What entered it, where that was worth keeping."""
    labels: Tensor | None = None
    """What the classes should be, where another function names them."""


@dataclass(eq=False)
class Picked:
    """The logits that a user's function picks from the output of a module."""

    call: ModuleCall | UntraceableError
    pick: Callable[[Any], Tensor]
    sample: Tensor | None = None
    error: Exception | None = None

    def look(self, output: Any) -> None:
        """Have a look at what training saw."""
        try:
            self.sample = sample(self.pick(output))
        except Exception as error:  # told when the step comes; a forward must not raise it
            self.error = error


# What a backward pass can reach: a softmax, or the output of a module, which may have a softmax inside.
Reached = SoftmaxCall | Picked | Ref


def function_name(function: Callable[..., Any]) -> str:
    """``div`` for ``torch.Tensor.div``, ``T`` for the getter of ``torch.Tensor.T``."""
    name = getattr(function, "__name__", "")
    return getattr(getattr(function, "__self__", None), "__name__", name) if name == "__get__" else name


def upstream(refs: Iterable[Ref]) -> set[Ref]:
    """These and everything that they were made from."""
    found: set[Ref] = set()
    todo = list(refs)
    while todo:
        ref = todo.pop()
        if ref not in found:
            found.add(ref)
            todo += ref.node.inputs
    return found


def sample(tensor: Tensor) -> Tensor:
    """A few hundred of its values, spread evenly: enough to recognise it, too few to weigh."""
    tensor = tensor.detach()
    count = min(tensor.numel(), _SAMPLE_SIZE)
    if count == tensor.numel():
        return tensor.clone()
    stride = tensor.numel() // count
    if tensor.is_contiguous():
        return tensor.view(-1)[: stride * count : stride].clone()
    # Without the copy that flattening would make.
    positions = torch.arange(0, stride * count, stride, device=tensor.device)
    return tensor[torch.unravel_index(positions, tensor.shape)]


def floating_outputs(output: Any) -> list[Tensor]:
    """The first few tensors of numbers in a module's output."""
    return [t for t in leaves(output, Tensor)[:_OUTPUTS] if t.is_floating_point()]


def version(tensor: Tensor) -> int:
    """How often it was changed in place."""
    return 0 if tensor.is_inference() else tensor._version
