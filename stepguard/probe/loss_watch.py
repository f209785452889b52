from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import unserializable_hook
from torch.utils.weak import WeakTensorKeyDictionary

from stepguard.probe.graph import in_backward, is_batched
from stepguard.probe.mode_stack import take_off, take_up
from stepguard.probe.module_hooks import ModuleHooks, compiles
from stepguard.probe.passes import ZEROING, Passes
from stepguard.probe.random_state import device_of
from stepguard.probe.seen_softmax import SeenSoftmax, look_at
from stepguard.probe.softmax import ENTRIES, GATES, Entry, argument, entry
from stepguard.probe.wide_head import REARRANGING

_STABLEMAX = {"stablemax_cross_entropy", "log_stablemax"}
_OTHER_SAMPLES = {"__getitem__", "narrow"}
_LABELLED = {
    "cross_entropy": 1,
    "nll_loss": 1,
    "binary_cross_entropy": 1,
    "binary_cross_entropy_with_logits": 1,
    "linear_cross_entropy": 2,
}
"""Losses, and which argument is their target."""
_SEEN = set(ENTRIES) | REARRANGING | _STABLEMAX | {"gather"}
_SHARDED = "the loss is given logits that are spread over several processes, so that none of them has a whole softmax"


class SeenLosses(NamedTuple):
    """The softmaxes from which the gradients of a step come, and what looking at them cost."""

    softmaxes: list[SeenSoftmax]
    stablemax: bool
    """Whether a loss took a StableMax instead."""
    seconds: float
    error: Exception | None


class _Part(NamedTuple):
    """Some of the samples of a softmax, perhaps in another order."""

    look: SeenSoftmax


class _Gate:
    """A softmax or sigmoid that may be anything, until a loss takes the logarithm of it."""

    def __init__(self, name: str, class_dim: int):
        self.name, self.class_dim = name, class_dim
        self.look: SeenSoftmax | None = None

    def gradient(self, gradient: Tensor) -> None:
        if self.look:
            self.look.gradient(gradient)


class _StableMax(NamedTuple):
    """What was made of a StableMax has no softmax."""


Made = SeenSoftmax | _Part | _Gate | _StableMax | None


class LossWatch(TorchFunctionMode):
    """Looks at the logits that go into a loss while training makes it, and at the gradient that comes back.

    A function mode that is on for the steps that it is told to look at, and sees losses inside modules as well.
    It keeps no logits: what is to be known of them is computed on the spot. Where anything is compiled it stays
    out of modules, for a compiled function that is called under a mode is compiled anew.

    Args:
        model: The module that is trained.
        parameters: Gives those that the optimizer moves.
    """

    def __init__(self, model: nn.Module, parameters: Callable[[], Iterable[Tensor]]):
        super().__init__()
        self._model, self._parameters = model, parameters
        self._device = device_of(model).type
        self._made: Any = WeakTensorKeyDictionary()
        self._passes: Passes[SeenSoftmax] | None = None
        self._hooks: ModuleHooks | None = None
        self._inside: nn.Module | None = None
        self._stablemax = False
        self._seconds = 0.0
        self._error: Exception | None = None

    @property
    def armed(self) -> bool:
        """Whether it looks."""
        return self._passes is not None

    def arm(self) -> None:
        """Look at the step that begins."""
        started = time.perf_counter()
        if self._passes:
            self._passes.remove()
        self._made, self._stablemax, self._error, self._inside = WeakTensorKeyDictionary(), False, None, None
        self._passes = Passes(self._parameters(), counted=False, around=self._at_own_cost)
        if self._hooks is None and compiles(self._model):
            self._hooks = ModuleHooks(self._model, self._enter, self._leave)
        if self._hooks is None:
            take_up(self)
        self._seconds = time.perf_counter() - started

    def take(self) -> SeenLosses:
        """What was seen since it was armed; it looks no longer."""
        take_off(self)
        if self._passes is None:
            return SeenLosses([], False, 0.0, None)
        found = [s for s in dict.fromkeys(self._passes.take()) if not s.superseded]
        self._passes.remove()
        self._passes = None
        if self._hooks:
            self._hooks.settle()
        return SeenLosses(found, self._stablemax, self._seconds, self._error)

    def remove(self) -> None:
        """Take every hook off the model."""
        self.take()
        if self._hooks:
            self._hooks.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._hooks and self._passes and not self._inside and torch.is_grad_enabled() and not in_backward():
            self._inside = module
            self._hooks.called.add(module)
            take_off(self)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._passes and module is self._inside:
            self._inside = None
            take_up(self)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if torch.compiler.is_compiling():
            return result
        # By the plain name first, which is what nearly every call ends with.
        name = getattr(function, "__name__", "")
        if name in _SEEN and isinstance(result, Tensor) and result.requires_grad and self._passes:
            with self._at_own_cost():
                if not in_backward():
                    self._see(name, function, args, kwargs or {}, result)
        elif name in ZEROING and self._passes:
            self._passes.zeroed(args)
        return result

    def _see(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor
    ) -> None:
        if name in _STABLEMAX:
            self._stablemax = True
            self._made[result] = _StableMax()
            return
        source = argument(args, kwargs, 0, "input")
        made = self._made.get(source) if isinstance(source, Tensor) else None
        if name in REARRANGING:
            if made is not None:
                part = name in _OTHER_SAMPLES and isinstance(made, SeenSoftmax)
                self._made[result] = _Part(made) if part else made
        elif name == "gather":
            self._gathered(made, argument(args, kwargs, 1, "dim"), argument(args, kwargs, 2, "index"), result)
        elif isinstance(source, Tensor) and hasattr(source, "to_local"):
            raise ValueError(_SHARDED)
        elif (found := entry(function, args, kwargs)) is None:
            return
        elif name in GATES:
            if isinstance(found.class_dim, int):
                self._made[result] = gate = _Gate(name, found.class_dim)
                self._hook(found.input, gate.gradient)
        else:
            target = argument(args, kwargs, _LABELLED[name], "target") if name in _LABELLED else None
            self._take(made, found, target, argument(args, kwargs, 7, "label_smoothing", 0.0), result)

    def _take(self, made: Made, found: Entry, target: Tensor | None, smoothing: float, result: Tensor) -> None:
        if isinstance(made, _StableMax):
            return
        if found.kind == "log_probabilities" and isinstance(made, _Part):
            made.look.superseded = True
        elif found.kind == "log_probabilities" and isinstance(made, SeenSoftmax) and target is not None:
            logp = found.input.detach().movedim(1 if found.input.ndim > 1 else 0, -1)
            true = target.clamp(0, logp.shape[-1] - 1).unsqueeze(-1)
            made.label(target, logp.gather(-1, true) == 0, found.counted)
            return
        if found.kind == "logarithm":
            if not isinstance(made, _Gate):
                return
            if made.name == "sigmoid":
                found = found._replace(kind="probabilities")
            else:  # the logarithm of a softmax is logits of the same softmax
                found = Entry(result.detach(), "logits", made.class_dim)
        look = look_at(found, target, result.dtype, smoothing)
        if isinstance(made, _Gate):
            made.look = look
        elif found.kind != "probabilities":
            self._hook(found.input, look.gradient)
        assert self._passes
        self._passes.watch_use(look, result)
        self._passes.watch(look, [result])
        self._made[result] = look

    def _gathered(self, made: Any, dim: Any, index: Any, result: Tensor) -> None:
        """Log-probabilities of the true classes, picked by hand."""
        if isinstance(made, SeenSoftmax) and isinstance(dim, int) and index.numel() == len(made.norm_N):
            made.label(index.detach(), result.detach() == 0)

    def _hook(self, tensor: Tensor, take: Callable[[Tensor], None]) -> None:
        def hook(gradient: Tensor) -> None:
            with self._at_own_cost():
                if not is_batched(gradient):
                    take(gradient.detach())

        if tensor.requires_grad:
            tensor.register_hook(unserializable_hook(hook))

    @contextmanager
    def _at_own_cost(self) -> Iterator[None]:
        """Time what is done inside, as training would see it: with no mode, no autocast and no error of ours."""
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad(), torch.autocast(self._device, enabled=False):
                yield
        except Exception as error:
            self._error = error
        finally:
            self._seconds += time.perf_counter() - started
