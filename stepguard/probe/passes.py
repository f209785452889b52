from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from stepguard.probe.graph import is_batched
from stepguard.probe.sharding import is_sharded

What = TypeVar("What")
ZEROING = {"zero_", "_foreach_zero_"}
"""Functions that set tensors to zero in place."""


class Used(Protocol):
    """Something with results of which a loss may use some only."""

    used: Tensor | None


class _Hold(Generic[What]):
    __slots__ = ("__weakref__", "what")

    def __init__(self, what: What):
        self.what: What | None = what


class Passes(Generic[What]):
    """What backward passes reached, as long as the gradients that they left are there.

    A pass counts if it left a gradient on a parameter of the optimizer and that has not been thrown away
    since: not the search for an adversarial example, not a batch whose step was skipped by a GradScaler
    or given up by the user, not the loss of another optimizer. Where parameters are sharded, each pass counts.

    Args:
        parameters: Those of the optimizer.
        counted: Whether :meth:`begin` will be called before each pass; else autograd numbers them.
        around: A context for what is done when a gradient comes by.

    Attributes:
        awake: Whether passes are noticed at all.
    """

    def __init__(self, parameters: Iterable[Tensor], counted: bool, around: Callable[[], AbstractContextManager[None]]):
        self._counted, self._around, self.awake = counted, around, True
        self._holds: weakref.WeakSet[_Hold[What]] = weakref.WeakSet()
        self._number = 0
        self._reached: dict[int, list[What]] = {}
        self._witness: dict[int, Tensor | None] = {}
        self._passes_of: dict[Tensor, set[int]] = {}
        self._handles: list[RemovableHandle] = []
        self.look_at(parameters)

    def look_at(self, parameters: Iterable[Tensor]) -> None:
        """Look at these parameters from now on."""
        self.remove()
        self._sharded = False
        for p in dict.fromkeys(parameters):
            if is_sharded(p):
                self._sharded = True
            elif p.requires_grad:
                hook = partial(self._gradient_comes, p)
                hook.__torch_unserializable__ = True  # type: ignore[attr-defined]
                self._handles.append(p.register_hook(hook))

    def remove(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def begin(self, by_hand: bool = False) -> None:
        """A backward pass begins; by hand if the user takes its gradients as they come."""
        if self._number not in self._witness:
            self._reached.pop(self._number, None)  # the last one was for something else
        self._number += 1
        if by_hand:
            self._witness[self._number] = None

    def watch(self, what: What, tensors: Iterable[Tensor]) -> None:
        """Notice when a gradient comes to one of these."""
        # Held by the graph up to the step, and then no longer: a loss that is kept keeps no batch.
        hold = _Hold(what)
        self._holds.add(hold)

        def reach(_: Tensor) -> None:
            if hold.what is not None:
                self.reach(hold.what)

        self._hook(tensors, reach)

    def watch_use(self, softmax: Used, result: Any) -> None:
        """Notice with which samples of a softmax a loss goes on, by the gradient of its result."""
        if not isinstance(result, Tensor):
            return
        found = weakref.ref(softmax)

        def use(gradient: Tensor) -> None:
            if (softmax := found()) is not None:
                used = gradient.detach() != 0
                softmax.used = used if softmax.used is None else softmax.used | used

        self._hook([result], use)

    def reach(self, what: What) -> None:
        """The pass that runs has reached something."""
        self._reached.setdefault(self._current, []).append(what)
        if self._sharded:  # whose gradients come in no way that could be watched
            self._witness.setdefault(self._current, None)

    def zeroed(self, args: tuple[Any, ...]) -> None:
        """One of :data:`ZEROING` was called with these arguments, which may be gradients."""
        places = {id(g) for g in (args[0] if isinstance(args[0], (list, tuple)) else args)}
        for p in [p for p in self._passes_of if p.grad is not None and id(p.grad) in places]:
            self._forget(self._passes_of[p])

    def take(self) -> list[What]:
        """What was reached and counts, first first; forgotten here."""
        counting = [n for n, p in self._witness.items() if p is None or p.grad is not None]
        found = [what for n in sorted(counting) for what in self._reached.get(n, [])]
        for hold in self._holds:
            hold.what = None
        self._reached, self._witness, self._passes_of = {}, {}, {}
        return found

    def _hook(self, tensors: Iterable[Tensor], call: Callable[[Tensor], None]) -> None:
        def hook(gradient: Tensor) -> None:
            # Such a gradient cannot be looked at, and is none that an optimizer gets.
            if not is_batched(gradient):
                with self._around():
                    call(gradient)

        for tensor in tensors:
            if tensor.grad_fn is not None:
                tensor.register_hook(unserializable_hook(hook))

    @property
    def _current(self) -> int:
        return self._number if self._counted else torch._C._current_graph_task_id()

    def _gradient_comes(self, p: Tensor, _: Tensor) -> None:
        if not self.awake:
            return
        now, earlier = self._current, self._passes_of.get(p)
        if earlier and p.grad is None:
            self._forget(earlier - {now})
        if now not in self._witness:
            self._witness[now] = p
            self._passes_of.setdefault(p, set()).add(now)

    def _forget(self, passes: set[int]) -> None:
        for number in list(passes):
            self._reached.pop(number, None)
            witness = self._witness.pop(number, None)
            if witness is not None:
                self._passes_of[witness].discard(number)
