from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from stepguard.probe.logits import check_scale, class_dimension, find_logits
from stepguard.probe.random_state import RandomState, device_of, random_state

_FINGERPRINT_SIZE = 256
_FOREIGN_INPUTS = (
    "The model's inputs were computed by other trained parameters, so its logits move by more than its own update; "
    "attach to the module that holds both"
)
_NO_CLASSES_YET = (
    "The gradient of the loss on the logits is all zero or not finite, and no earlier one has told which dimension "
    "holds the classes; it is looked at again at the next step"
)


class ModelCall(NamedTuple):
    """One call of the model by the training step, enough to make it again."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: RandomState
    fingerprint: Tensor
    autocast: bool
    training: list[bool]
    """The mode of every submodule."""
    class_dim: int
    error: Exception | None


class SeenStep(NamedTuple):
    """What a training step did with the model, and what watching it cost."""

    calls: list[ModelCall]
    """The calls whose logits a backward pass reached."""
    forwards: int
    """All calls under grad."""
    seconds: float
    error: Exception | None
    """What went wrong while watching them, where that kept a call from being kept."""


NOTHING_SEEN = SeenStep([], 0, 0.0, None)


def fingerprint(logits: Tensor) -> Tensor:
    """A few hundred logits spread over the batch: enough to recognise it, too few to weigh."""
    flat = logits.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _FINGERPRINT_SIZE)].clone()


class CallCapture:
    """Remembers the calls of a model whose logits a backward pass then reached.

    A call is held by a gradient hook on its own logits, so its inputs live exactly as long as the
    autograd graph does until backward confirms that the loss really used them: an evaluation under
    grad is forgotten with its graph, and every micro-batch of an accumulated step is kept. Calls
    without grad do not count: evaluations, and the replay of a call.
    """

    def __init__(
        self, model: nn.Module, pick: Callable[[Any], Tensor] | None, before_first: Callable[[], None] | None = None
    ):
        self._model = model
        self._before_first = before_first
        self._pick = pick
        self.class_dim: int | None = None
        self._random: RandomState | None = None
        self._forwards = 0
        self._calls: list[ModelCall] = []
        self._seconds = 0.0
        self._error: Exception | None = None
        self._accumulated = False
        self._handles: list[RemovableHandle] = [
            # First of the pre-hooks: the replay runs the others again and must feed them what they were fed.
            model.register_forward_pre_hook(_ModuleHook(model, self._before), with_kwargs=True, prepend=True),
            model.register_forward_hook(_ModuleHook(model, self._after), with_kwargs=True),
        ]
        # One parameter, by the head as a rule, is enough to tell whether a backward pass left gradients.
        trained = [p for p in model.parameters() if p.requires_grad]
        if trained:
            self._handles.append(trained[-1].register_post_accumulate_grad_hook(self._on_gradient))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._calls = []

    def take(self) -> SeenStep:
        """What was seen since the last time, oldest call first; it is forgotten here."""
        seen = SeenStep(self._calls, self._forwards, self._seconds, self._error)
        self._calls, self._forwards, self._seconds, self._error = [], 0, 0.0, None
        self._accumulated = False
        return seen

    def _on_gradient(self, _: Tensor) -> None:
        self._accumulated = True

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not _in_backward():
            with self._at_own_cost():
                if self._before_first and not self._forwards:
                    self._before_first()
                self._random = random_state(device_of(self._model))
                # Gradients that came and are gone belong to a step that was never made: a GradScaler skipped it.
                if self._accumulated and self._calls and all(p.grad is None for p in self._model.parameters()):
                    self._calls, self._accumulated = [], False

    def _after(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() and not _in_backward():
            self._forwards += 1
            random, self._random = self._random, None
            if random is not None:
                with self._at_own_cost():
                    self._watch(args, kwargs, output, random)

    @contextmanager
    def _at_own_cost(self) -> Iterator[None]:
        """Time what is done inside, and let no error of ours out into the user's forward."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._error = error
        finally:
            self._seconds += time.perf_counter() - started

    def _watch(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, random: RandomState) -> None:
        """Have the call kept as soon as a gradient reaches its logits."""
        error: Exception | None = None
        sample = values = torch.empty(0)
        # With a user's function the logits may be beside the path to the loss: then watch the whole output.
        watched = tree_leaves(_as_tree(output))
        try:
            inputs = [leaf for arg in (*args, *kwargs.values()) for leaf in tree_leaves(_as_tree(arg))]
            if any(_depends_on_parameters(t) for t in inputs if isinstance(t, Tensor)):
                raise ValueError(_FOREIGN_INPUTS)
            logits = (self._pick or find_logits)(output)
            sample = fingerprint(logits)
            if self._pick is None:
                watched = [logits]
                if self.class_dim is None:
                    values = logits.detach().clone()  # looked at once only, and not after an in-place change
        except Exception as e:  # the guard reports it when the step comes; a forward must not raise it
            error = e
        autocast = torch.is_autocast_enabled(device_of(self._model).type)
        training = [m.training for m in self._model.modules()]
        reached = False

        def keep(gradient: Tensor) -> None:
            nonlocal reached, error
            if reached:
                return
            reached = True
            if error is None and self._pick is None and self.class_dim is None:
                try:
                    found = class_dimension(gradient)
                    if found is not None:
                        check_scale(values, gradient, found)
                    elif gradient.ndim > 2:
                        raise ValueError(_NO_CLASSES_YET)
                    self.class_dim = found
                except Exception as e:
                    error = e
            self._calls.append(ModelCall(args, kwargs, random, sample, autocast, training, self.class_dim or -1, error))

        for tensor in watched:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(keep)


def _in_backward() -> bool:
    """Whether this forward is a checkpoint's recomputation, made by a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _depends_on_parameters(tensor: Tensor) -> bool:
    """Whether a parameter is among what the tensor was computed from; an input that asks for gradients is none."""
    nodes, met = [tensor.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in met:
            continue
        met.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        nodes += [following for following, _ in node.next_functions]
    return False


def _as_tree(output: Any) -> Any:
    return vars(output) if hasattr(output, "__dict__") and not isinstance(output, (Tensor, dict)) else output


class _ModuleHook:
    """A module hook that stays behind when the module is copied or pickled."""

    def __init__(self, model: nn.Module, call: Callable[..., None]):
        self._model, self._call = model, call

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if module is self._model:
            self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_InertHook, ())


class _InertHook:
    def __call__(self, *args: Any) -> None:
        return None
