from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepguard.probe.graph import entered_unseen, in_backward, parameters_of
from stepguard.probe.inputs import Inputs
from stepguard.probe.memory import ForwardMemory
from stepguard.probe.mode_stack import is_up, take_off, take_up
from stepguard.probe.module_hooks import ModuleHooks
from stepguard.probe.numbers_read import Numbers
from stepguard.probe.outline import (
    FunctionCall,
    Held,
    HeldGenerator,
    ModuleCall,
    Picked,
    Reached,
    Ref,
    SoftmaxCall,
    UntraceableError,
    floating_outputs,
    function_name,
    kept_logits,
    sample,
    version,
)
from stepguard.probe.passes import ZEROING, Passes
from stepguard.probe.random_state import device_of, random_state
from stepguard.probe.reasons import FOREIGN, READ, UNSEEN, WRITES
from stepguard.probe.softmax import ENTRIES
from stepguard.probe.structure import leaves, map_leaves
from stepguard.probe.tracker import Tracker

_PROPERTIES = {"T", "mT", "H", "mH", "data", "real", "imag"}
_DRAWS = {
    "bernoulli", "bernoulli_", "multinomial", "rand_like", "randn_like", "randint_like", "normal",
    "normal_", "uniform_", "exponential_", "gumbel_softmax", "random_", "cauchy_", "geometric_", "log_normal_",
    "poisson", "binomial", "rrelu", "rrelu_", "scaled_dot_product_attention", "multi_head_attention_forward",
}  # fmt: skip
_WRITES_UNSEEN = {"batch_norm", "instance_norm"}  # running averages, without a new version
_MADE_OF_NUMBERS = {"tensor", "as_tensor", "scalar_tensor", "full", "full_like"}
_anyone = threading.local()
"""Whether this thread measures at present: what a guard runs again is nothing for another guard of the same model."""


class SeenStep(NamedTuple):
    """What a training step did with the model, and what watching it cost."""

    reached: list[Reached]
    """The softmaxes, and the outputs of modules, that a backward pass reached."""
    forwards: int
    """Outermost calls of modules under grad."""
    seconds: float
    error: Exception | None
    """What went wrong while watching."""
    watched: bool = True
    """Whether it was looked at; without that nothing of it is known but the inputs."""
    inputs: Sequence[Tensor] = ()
    """Floats that modules were given in it, in the last of their calls."""


NOTHING_SEEN = SeenStep([], 0, 0.0, None)


class _Entered(NamedTuple):
    module: nn.Module
    forward: Any
    caller: FrameType
    """Who called it."""
    call: ModuleCall | UntraceableError
    live: list[Tensor]
    """What it was given that has a graph."""
    versions: list[tuple[Tensor, int]]
    """What else it was given, and how often that had been changed in place."""
    start: int
    """Autograd's sequence number."""

    @property
    def is_over(self) -> bool:
        """Whether the call has ended without a word, as one does that Ctrl-C came into."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.caller:
            frame = frame.f_back
        return frame is None


class _Here(threading.local):
    """What each thread is in the middle of."""

    entered: _Entered | None = None


class _Begun(NamedTuple):
    call: FunctionCall | UntraceableError
    versions: list[tuple[Tensor, int]]
    """Of its arguments."""
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
        parameters: Gives those that the optimizer moves.
        pick: From the model's output to its logits; None finds the softmaxes of the loss.
        before_first: Called before the first forward of each step.
        worth: Whether the next step is worth watching; asked when it begins and, if not, once more at its first
            forward. To watch costs some 0.2 ms a step, which small models notice.

    Attributes:
        numbers: Those that the step used.
        keeps_logits: Whether the logits that training makes are kept up to the step.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Callable[[], Iterable[Tensor]],
        pick: Callable[[Any], Tensor] | None,
        before_first: Callable[[], None] | None = None,
        worth: Callable[[], bool] = lambda: True,
    ):
        super().__init__()
        self._model, self._parameters, self._pick, self._before_first = model, parameters, pick, before_first
        self._worth, self._watching = worth, True
        self._device = device_of(model)
        self._look_at_parameters()
        self._tracker, self._memory = Tracker(), ForwardMemory()
        self._held: WeakValueDictionary[int, Held] = WeakValueDictionary()
        self._here = _Here()
        self._steps = self._forwards = 0
        self._seconds = 0.0
        self._error: Exception | None = None
        self.numbers, self._given = Numbers(), Inputs()
        self.keeps_logits = False
        self._doubtful: set[nn.Module] = set()
        self._sparing: set[nn.Module] = set()
        self._begun = self._paused = self._removed = False
        self._early = pick is None
        self._passes: Passes[Reached] = Passes(parameters(), counted=pick is None, around=self._at_own_cost)
        self._hooks = ModuleHooks(model, self._enter, self._leave, only_root=pick is not None)
        self.resume()

    def remove(self) -> None:
        """Take every hook off the model."""
        take_off(self)
        self._removed = self._paused = True  # another thread's stack may still have it
        self._hooks.remove()
        self._passes.remove()
        self._passes.take()

    def take(self) -> SeenStep:
        """What was seen since the last time; it is forgotten here."""
        given = self._given.take()
        if not self._watching:
            self._begun, seconds, self._seconds = False, self._seconds, 0.0
            return SeenStep([], 0, seconds, None, False, given)
        take_off(self)
        seen = SeenStep(self._passes.take(), self._forwards, self._seconds, self._error, True, given)
        self._forwards, self._seconds, self._error = 0, 0.0, None
        self._here.entered, self._begun = None, False
        self._tracker.clear()  # what this step made is just there for the next
        self._held.clear()
        return seen

    def resume(self) -> None:
        """The next step begins: watch from here where one uses parameters before its first module."""
        if self._watching:
            self._steps += 1
            self.numbers.next_step()
        self._watching = self._passes.awake = self._worth()
        if self._early and self._watching and not self._removed:
            take_up(self)

    def changes_by_others(self) -> int:
        """How often parameters that the optimizer does not move have been changed."""
        return sum(map(version, self._others))

    def _look_at_parameters(self) -> None:
        self._own, moved = set(self._model.parameters()), set(self._parameters())
        self._others = [p for p in self._own if p not in moved]

    @property
    def _asleep(self) -> bool:
        return self._paused or getattr(_anyone, "measures", False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Watch nothing of what is done inside, by any watch."""
        self._paused = _anyone.measures = True
        try:
            yield
        finally:
            self._paused, _anyone.measures = self._removed, False

    def settle(self, early: bool) -> None:
        """What was seen was enough: let go of the inside of modules, and of what is before the first if not early."""
        if self._removed:  # meanwhile, by a hook or another thread
            return
        self._hooks.settle()
        self._early = early

    def look_again(self) -> None:
        """What was seen was not enough: watch everything."""
        if self._removed:
            return
        self._hooks.unsettle()
        self._passes.look_at(self._parameters())
        self._look_at_parameters()
        self._memory = ForwardMemory()
        self._early = self._pick is None

    def _begin(self) -> None:
        """The first forward of a step."""
        self._begun = True
        if self._before_first:
            self._before_first()
        if not self._watching and not self._early:  # the learning rate of this step is known only now
            self._watching = self._passes.awake = self._worth()

    # The inside of modules is not watched; see ModuleHooks for which are.

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Without gradients only what lies within a training step, such as a teacher's view of the batch.
        if self._asleep or in_backward() or not (torch.is_grad_enabled() or is_up(self)):
            return
        if not self._begun:
            with self._at_own_cost():
                self._begin()
        if not self._watching:
            with torch._C.DisableTorchFunction(), suppress(Exception):
                self._given.add(module, args, kwargs)
            return
        outer = self._here.entered
        # A call by which a strategy only redirects to training_step is none: it puts another forward there meanwhile.
        if (
            outer
            and outer.module is not module
            and vars(outer.module).get("forward") is outer.forward
            and not outer.is_over
        ):
            return
        take_off(self)
        with self._at_own_cost():
            self._forwards += torch.is_grad_enabled()
            self._hooks.called.add(module)
            given = leaves(args, Tensor) + leaves(kwargs, Tensor)
            self._given.add(module, args, kwargs)
            call: ModuleCall | UntraceableError
            try:
                call = ModuleCall(
                    *self._inputs(args, kwargs, clone=module not in self._sparing),
                    module=module,
                    autocast=self._autocast(),
                    random=random_state(self._device),
                    training=[m.training for m in module.modules()],
                    memory=self._memory.keep(module),
                    writes=module not in self._sparing,
                    under_grad=torch.is_grad_enabled(),
                    others=self.changes_by_others(),
                )
            except UntraceableError as error:
                call = error.with_traceback(None)
            live = [t for t in given if t.grad_fn is not None]
            versions = [(t, version(t)) for t in given if t.grad_fn is None]
            start = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
            forward = vars(module).get("forward")
            self._here.entered = _Entered(module, forward, sys._getframe(2), call, live, versions, start)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered = self._here.entered
        if not entered or entered.module is not module:
            return
        self._here.entered = None
        with self._at_own_cost():
            call, tensors = self._checked(entered, output), leaves(output, Tensor)
            if isinstance(call, ModuleCall):
                call.memory = self._memory.moved(module, call.memory)
                call.samples = [sample(t) for t in floating_outputs(output)]
            if self._pick:
                picked = Picked(call, self._pick)
                picked.look(output)
                self._passes.watch(picked, tensors)
                return
            for i, tensor in enumerate(tensors):
                origin = Ref(call, i) if isinstance(call, ModuleCall) else call
                self._note(tensor, origin)
                if isinstance(origin, Ref):
                    self._passes.watch(origin, [tensor])
            take_up(self)

    def _checked(self, entered: _Entered, output: Any) -> ModuleCall | UntraceableError:
        """The call, or why it cannot be made again."""
        call, module = entered.call, entered.module
        changed = any(version(tensor) != before for tensor, before in entered.versions)
        if changed and module in self._sparing:
            self._sparing.discard(module)  # from the next time on it is given copies
            return UntraceableError(WRITES)
        if not changed and isinstance(call, ModuleCall):
            self._sparing.add(module)
            call.writes = False
        # The way of a tensor past the arguments changes seldom, and to walk the graph takes time.
        if self._steps.bit_count() == 1 or module in self._doubtful:
            if entered_unseen(leaves(output, Tensor), entered.live, entered.start):
                self._doubtful.add(module)
                return UntraceableError(UNSEEN)
            self._doubtful.discard(module)
        return call

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if self._asleep:
            return function(*args, **kwargs)
        begun: _Begun | None = None
        with self._at_own_cost():
            begun = self._before(function, args, kwargs)
        result = function(*args, **kwargs)
        if begun:
            with self._at_own_cost():
                self._after(begun, args, result)
        return result

    def _before(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Begun | None:
        name = getattr(function, "__name__", "")
        if name in ("backward", "grad"):
            self._passes.begin(by_hand=name == "grad" and self._are_own(kwargs.get("inputs", args[1:2])))
            return None
        if name in ZEROING:
            self._passes.zeroed(args)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place and args:
            self._keep_from_change(args[0])
        if name in _MADE_OF_NUMBERS and self.numbers.suspicious((*args, *kwargs.values())):
            return _Begun(UntraceableError(READ), [], None)
        if not (name in ENTRIES or self._concerns(args) or (kwargs and self._concerns(kwargs.values()))):
            return None
        name = function_name(function)
        if function.__name__ == "__get__" and name not in _PROPERTIES:
            return None
        call: FunctionCall | UntraceableError
        try:
            if self.numbers.suspicious((*args, *kwargs.values())):
                raise UntraceableError(READ)
            random = random_state(self._device) if "dropout" in name or name in _DRAWS else None
            call = FunctionCall(*self._inputs(args, kwargs, in_place), self._autocast(), random, function=function)
        except UntraceableError as error:
            call = error.with_traceback(None)
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
        softmax = None
        if name in ENTRIES and tensors and tensors[0].requires_grad and torch.is_grad_enabled():
            entering = tensors[0]
            # Another model's loss is none of ours.
            if isinstance(call, FunctionCall) or entering in self._tracker or parameters_of(entering) & self._own:
                softmax = SoftmaxCall(call, sample(entering))
                softmax.logits = kept_logits(entering) if self.keeps_logits else None
        return _Begun(call, [(t, version(t)) for t in tensors], softmax)

    def _after(self, begun: _Begun, args: tuple[Any, ...], result: Any) -> None:
        call, softmax = begun.call, begun.softmax
        self.numbers.read(result)
        if softmax is not None:
            self._passes.watch_use(softmax, result)
            self._passes.watch(softmax, leaves(result, Tensor))
        changed = [t for t, before in begun.versions if version(t) != before]
        in_place = bool(changed and args) and changed[0] is args[0]
        if isinstance(call, FunctionCall):
            call.in_place = in_place
            call.writes = call.name in _WRITES_UNSEEN or bool(changed) and not in_place
        if in_place:
            self._note(changed[0], Ref(call, 0) if isinstance(call, FunctionCall) else call)
            return
        for i, tensor in enumerate(leaves(result, Tensor)):
            if not any(tensor is a for a in args):  # such as float() of what is float already
                self._note(tensor, Ref(call, i) if isinstance(call, FunctionCall) else call)

    def _keep_from_change(self, tensor: Any) -> None:
        """Of a tensor that is held and now perhaps changed in place, hold a copy."""
        held = self._held.pop(id(tensor), None)
        if held is not None:
            held.keep_copy(tensor)

    def _are_own(self, inputs: Any) -> bool:
        return any(isinstance(t, nn.Parameter) and t in self._own for t in leaves([inputs], Tensor))

    def _concerns(self, values: Any) -> bool:
        for value in values:
            if isinstance(value, Tensor):
                if value in self._tracker or (isinstance(value, nn.Parameter) and value in self._own):
                    return True
            elif isinstance(value, (list, tuple)) and self._concerns(value):
                return True
        return False

    def _note(self, tensor: Tensor, origin: Ref | UntraceableError) -> None:
        if not isinstance(tensor, nn.Parameter):
            self._tracker.note(tensor, origin)

    def _inputs(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], clone: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as a step keeps them; copies if the call changes what it is given."""

        def kept(leaf: Any) -> Any:
            return HeldGenerator(leaf) if isinstance(leaf, torch.Generator) else self._input(leaf, clone)

        kinds = (Tensor, torch.Generator)
        return map_leaves(args, kinds, kept, fresh=True), map_leaves(kwargs, kinds, kept, fresh=True)

    def _input(self, tensor: Tensor, clone: bool) -> Tensor | Ref | Held:
        ref = self._tracker.find(tensor)
        # What is no number has no slope: a label, a mask, an index is what training saw.
        if ref is not None and (tensor.is_floating_point() or tensor.is_complex()):
            return ref
        if isinstance(tensor, nn.Parameter):
            if tensor.requires_grad and tensor not in self._own:
                raise UntraceableError(FOREIGN)
            return tensor
        if tensor.grad_fn is not None and parameters_of(tensor):
            raise UntraceableError(FOREIGN)
        if clone or tensor.grad_fn is not None:
            return Held(tensor.detach().clone() if clone else tensor.detach())
        held = self._held.get(id(tensor))
        if held is None:
            held = self._held[id(tensor)] = Held(tensor)
        return held

    def _autocast(self) -> torch.dtype | None:
        kind = self._device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    @contextmanager
    def _at_own_cost(self) -> Iterator[None]:
        """Time what is done inside, show it to no mode, and let no error of ours out into the user's code."""
        started = time.perf_counter()
        try:
            with torch._C.DisableTorchFunction():
                yield
        except Exception as error:
            self._error = error
        finally:
            self._seconds += time.perf_counter() - started
