from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepguard.probe.memory import ForwardMemory
from stepguard.probe.mode_stack import take_off, take_up
from stepguard.probe.module_hooks import ModuleHooks
from stepguard.probe.outline import (
    FunctionCall,
    Held,
    ModuleCall,
    Picked,
    Reached,
    Ref,
    SoftmaxCall,
    Tracker,
    UntraceableError,
    floating_outputs,
    function_name,
    parameters_of,
    sample,
    version,
)
from stepguard.probe.random_state import device_of, random_state
from stepguard.probe.softmax import ENTRIES
from stepguard.probe.structure import leaves, map_leaves

_PROPERTIES = {"T", "mT", "H", "mH", "data", "real", "imag"}
_GRADIENTS = {"backward", "grad"}
_DRAWS = {"bernoulli", "multinomial", "rand_like", "randn_like", "randint_like", "normal_", "uniform_", "bernoulli_"}
FOREIGN = (
    "The logits depend on parameters by a way that cannot be run again, such as other trained parameters than the "
    "attached module's (attach to the module that holds both), or a custom autograd function or a compiled function "
    "between module and loss; else pass logits=, a function from the module's output to the logits, or forward=, a "
    "function that runs the model on a batch and returns its logits"
)


_READ = (
    "The logits were computed with a number that was read off a tensor, as by .item(), which depends on the "
    "parameters as well; leave it a tensor, or pass forward=, a function that runs the model on a batch and returns "
    "its logits"
)


class SeenStep(NamedTuple):
    """What a training step did with the model, and what watching it cost."""

    reached: list[Reached]
    """The softmaxes, and the outputs of modules, that a backward pass reached."""
    forwards: int
    """Outermost calls of modules under grad."""
    seconds: float
    error: Exception | None
    """What went wrong while watching."""


NOTHING_SEEN = SeenStep([], 0, 0.0, None)


class _Entered(NamedTuple):
    module: nn.Module
    forward: Any
    call: ModuleCall | UntraceableError


class _Begun(NamedTuple):
    call: FunctionCall | UntraceableError
    version: int
    """Of its first argument."""
    softmax: SoftmaxCall | None


class Watch(TorchFunctionMode):
    """Sees how a training step comes from its batch to the softmax of its loss.

    Of modules it sees the outermost calls only, through hooks; what happens between them and up to the
    loss, as a function mode that is on from the first such call to the optimizer step. What it keeps of
    a forward hangs on the tensors that came of it, and what a loss used is held by gradient hooks until
    backward confirms it: an evaluation under grad is forgotten with its graph, and every micro-batch of
    an accumulated step is kept.

    Args:
        model: The module whose training is watched, itself or any part of it.
        pick: From the model's output to its logits; None finds the softmaxes of the loss.
        before_first: Called before the first forward of each step.
    """

    def __init__(
        self, model: nn.Module, pick: Callable[[Any], Tensor] | None, before_first: Callable[[], None] | None = None
    ):
        super().__init__()
        self._model, self._pick, self._before_first = model, pick, before_first
        self._device, self._own = device_of(model), set(model.parameters())
        self._tracker, self._memory = Tracker(), ForwardMemory()
        self._held: WeakValueDictionary[int, Held] = WeakValueDictionary()
        self._numbers: set[float] = set()
        self._entered: _Entered | None = None
        self._reached: list[Reached] = []
        self._forwards, self._seconds = 0, 0.0
        self._error: Exception | None = None
        self._accumulated = self._paused = self._passing = False
        self._early = pick is None
        self._hooks = ModuleHooks(model, self._enter, self._leave, only_root=pick is not None)
        # One parameter, by the head as a rule, is enough to tell whether a backward pass left gradients.
        trained = [p for p in model.parameters() if p.requires_grad]
        self._handles = [trained[-1].register_post_accumulate_grad_hook(self._on_gradient)] if trained else []
        self.resume()

    def remove(self) -> None:
        """Take every hook off the model."""
        take_off(self)
        self._hooks.remove()
        for handle in self._handles:
            handle.remove()
        self._reached = []

    def take(self) -> SeenStep:
        """What was seen since the last time; it is forgotten here, and nothing is watched until told to resume."""
        take_off(self)
        self._paused = True
        seen = SeenStep(self._reached, self._forwards, self._seconds, self._error)
        self._reached, self._forwards, self._seconds, self._error = [], 0, 0.0, None
        self._entered, self._accumulated = None, False
        # What this step made is just there for the next.
        self._tracker, self._numbers = Tracker(), set()
        self._held.clear()
        return seen

    def resume(self) -> None:
        """Watch again: from the next module, or from here where a step uses parameters before its first module."""
        self._paused = False
        if self._early:
            take_up(self)

    def settle(self, early: bool) -> None:
        """What was seen was enough: let go of the inside of modules, and of what is before the first if not early."""
        self._hooks.settle()
        self._early = early

    def look_again(self) -> None:
        """What was seen was not enough: watch everything."""
        self._hooks.unsettle()
        self._own = set(self._model.parameters())
        self._memory = ForwardMemory()
        self._early = self._pick is None

    # The inside of modules is not watched; see ModuleHooks for which are.

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._paused or not torch.is_grad_enabled() or _in_backward():
            return
        outer = self._entered
        # A call by which a strategy only redirects to training_step is none: it puts another forward there meanwhile.
        if outer and outer.module is not module and vars(outer.module).get("forward") is outer.forward:
            return
        take_off(self)
        with self._at_own_cost():
            if self._before_first and not self._forwards:
                self._before_first()
            # Gradients that came and are gone belong to a step that was never made: a GradScaler skipped it.
            if self._accumulated and self._reached and all(p.grad is None for p in self._model.parameters()):
                self._reached, self._accumulated = [], False
            self._forwards += 1
            self._hooks.called.add(module)
            call: ModuleCall | UntraceableError
            try:
                call = ModuleCall(
                    *self._inputs(args, kwargs),
                    module=module,
                    autocast=self._autocast(),
                    random=random_state(self._device),
                    training=[m.training for m in module.modules()],
                    memory=self._memory.keep(module),
                )
            except UntraceableError as error:
                call = error.with_traceback(None)
            self._entered = _Entered(module, vars(module).get("forward"), call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._entered or self._entered.module is not module:
            return
        call, self._entered = self._entered.call, None
        with self._at_own_cost():
            tensors = leaves(output, Tensor)
            if isinstance(call, ModuleCall):
                call.memory = self._memory.moved(module, call.memory)
                call.samples = [sample(t) for t in floating_outputs(output)]
            if self._pick:
                picked = Picked(call, self._pick)
                picked.look(output)
                self._when_reached(picked, [t for t in tensors if t.requires_grad])
                return
            for i, tensor in enumerate(tensors):
                origin = Ref(call, i) if isinstance(call, ModuleCall) else call
                self._note(tensor, origin)
                if tensor.requires_grad and isinstance(origin, Ref):
                    self._when_reached(origin, [tensor])
            take_up(self)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        begun: _Begun | None = None
        name = function.__name__
        if name[-1:] == "_" or name == "__setitem__":
            self._keep_from_change(args)
        if name in ENTRIES or self._concerns(args) or (kwargs and self._concerns(kwargs.values())):
            with self._at_own_cost():
                begun = self._before(function, args, kwargs)
        if function is torch.autograd.grad and not self._concerns([kwargs.get("inputs", args[1:2])]):
            with self._not_the_loss():
                return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if begun:
            with self._at_own_cost():
                self._after(begun, args, result)
        return result

    @contextmanager
    def _not_the_loss(self) -> Iterator[None]:
        """A gradient that comes by is none that an optimizer will see."""
        self._passing = True
        try:
            yield
        finally:
            self._passing = False

    def _keep_from_change(self, args: tuple[Any, ...]) -> None:
        """Of a tensor that is held and now perhaps changed in place, hold a copy."""
        held = self._held.pop(id(args[0]), None) if args else None
        if held is not None and held.tensor is args[0]:
            held.tensor = held.tensor.detach().clone()

    def _concerns(self, values: Any) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if value in self._tracker or (isinstance(value, nn.Parameter) and value in self._own):
                    return True
            elif isinstance(value, (list, tuple)) and self._concerns(value):
                return True
        return False

    def _before(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Begun | None:
        name = function_name(function)
        if name in _GRADIENTS or (function.__name__ == "__get__" and name not in _PROPERTIES):
            return None
        call: FunctionCall | UntraceableError
        try:
            if any(isinstance(a, float) and a in self._numbers for a in args):
                raise UntraceableError(_READ)
            random = random_state(self._device) if "dropout" in name or name in _DRAWS else None
            call = FunctionCall(*self._inputs(args, kwargs), self._autocast(), random, function=function)
        except UntraceableError as error:
            call = error.with_traceback(None)
        entering = args[0] if args else kwargs.get("input")
        softmax = None
        if not isinstance(entering, Tensor):
            return _Begun(call, 0, None)
        if name in ENTRIES and entering.requires_grad and torch.is_grad_enabled():
            # Another model's loss is none of ours.
            if isinstance(call, FunctionCall) or entering in self._tracker or parameters_of(entering) & self._own:
                softmax = SoftmaxCall(call, sample(entering))
                self._when_reached(softmax, [entering])
        return _Begun(call, version(entering), softmax)

    def _after(self, begun: _Begun, args: tuple[Any, ...], result: Any) -> None:
        call, before, softmax = begun
        if isinstance(result, float):  # .item(): no longer a tensor, but from the parameters all the same
            self._numbers.add(result)
        first = args[0] if args else None
        if isinstance(first, Tensor) and version(first) != before:
            if isinstance(call, FunctionCall):
                call.in_place = True
                known = bool(leaves(call.args[0], Ref))  # or a buffer, whose value before is gone
                self._note(first, Ref(call, 0) if known else UntraceableError(FOREIGN))
            return
        if softmax is not None and isinstance(result, Tensor) and result.ndim and result.requires_grad:
            _when_used(softmax, result)
        for i, tensor in enumerate(leaves(result, Tensor)):
            if not any(tensor is a for a in args):  # such as float() of what is float already
                self._note(tensor, Ref(call, i) if isinstance(call, FunctionCall) else call)

    def _note(self, tensor: Tensor, origin: Ref | UntraceableError) -> None:
        if not isinstance(tensor, nn.Parameter):
            self._tracker.note(tensor, origin)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return map_leaves(args, Tensor, self._input), map_leaves(kwargs, Tensor, self._input)

    def _input(self, tensor: Tensor) -> Tensor | Ref | Held:
        ref = self._tracker.find(tensor)
        if ref is not None:
            return ref
        if isinstance(tensor, nn.Parameter):
            if tensor.requires_grad and tensor not in self._own:
                raise UntraceableError(FOREIGN)
            return tensor
        if tensor.grad_fn is not None and parameters_of(tensor):
            raise UntraceableError(FOREIGN)
        held = self._held.get(id(tensor))
        if held is None:
            held = Held(tensor if tensor.grad_fn is None else tensor.detach())
            if tensor.grad_fn is None:
                self._held[id(tensor)] = held
        return held

    def _autocast(self) -> torch.dtype | None:
        kind = self._device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    def _when_reached(self, what: Reached, tensors: list[Tensor]) -> None:
        held = [what]  # emptied by the first gradient, so that no hook keeps a graph alive that is done

        def reach(_: Tensor) -> None:
            if held and not self._passing:
                self._reached.append(held.pop())

        for tensor in tensors:
            tensor.register_hook(reach)

    def _on_gradient(self, _: Tensor) -> None:
        self._accumulated = True

    @contextmanager
    def _at_own_cost(self) -> Iterator[None]:
        """Time what is done inside, and let no error of ours out into the user's code."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._error = error
        finally:
            self._seconds += time.perf_counter() - started


def _when_used(softmax: SoftmaxCall, result: Tensor) -> None:
    """Find out which samples the loss goes on with, from the gradient of the softmax's result for each."""

    def use(gradient: Tensor) -> None:
        used = gradient != 0
        softmax.used = used if softmax.used is None else softmax.used | used

    result.register_hook(use)


def _in_backward() -> bool:
    """Whether this forward is a checkpoint's recomputation, made by a backward pass."""
    return torch._C._current_graph_task_id() != -1
