from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase

from stepguard.probe.backward_hooks import unhooked
from stepguard.probe.kernels import differentiable, eager, nothing_saved
from stepguard.probe.lookout import Lookout
from stepguard.probe.outline import (
    FunctionCall,
    Held,
    HeldGenerator,
    ModuleCall,
    Picked,
    Ref,
    SoftmaxCall,
    Step,
    floating_outputs,
    sample,
    upstream,
)
from stepguard.probe.random_state import device_of, random_state, replaying
from stepguard.probe.recognition import compare, near, same
from stepguard.probe.softmax import LOGARITHMS, Softmax
from stepguard.probe.structure import leaves, map_leaves
from stepguard.probe.swapping import HALVES
from stepguard.probe.traces import no_traces
from stepguard.probe.values import Elsewhere, Values
from stepguard.probe.whole import Whole
from stepguard.probe.wide_head import NotATailError, has_wide_head

Target = SoftmaxCall | Picked | ModuleCall | Callable[[nn.Module], Tensor]
"""What has logits: a softmax, a module with some inside, or a user's function from the model to logits."""
T = TypeVar("T")
_TRACED_BACK = {"binary_cross_entropy", "nll_loss"} | LOGARITHMS


class Manner(NamedTuple):
    """How to run again what training did."""

    shield: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context for every run, in which what the model reports is not heard."""
    running_averages: bool = False
    """Whether normalisation layers use their running averages, as in evaluation, although they train."""
    since: Callable[[int], Sequence[tuple[Tensor, Tensor]]] = lambda order: ()
    """Parameters that other optimizers have moved since a moment, and where they were then."""


@dataclass
class Learned:
    """What has been found out about a model by running it again."""

    dense: set[torch.Size] = field(default_factory=set)
    """Shapes of wide layers whose slopes cannot be left for later."""
    autocast: set[str] = field(default_factory=set)
    """Kinds of devices for which the model switches autocast on by itself."""


class Result(NamedTuple):
    """What a replay came to."""

    softmaxes: list[Softmax]
    samples: list[Tensor]
    """Of what training saw of it, in a fixed order."""
    sources: list[Target]
    """Where each softmax was found."""


class Rerun:
    """What a training step did on one batch, to be run again at other parameters, leaving no trace of it.

    Args:
        model: The attached module.
        targets: What has logits, of one batch.
        elsewhere: How to put its parameters where they shall be.
        how: What the user chose about it.
        learned: What is known of the model; more is added.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        elsewhere: Elsewhere,
        how: Manner,
        learned: Learned,
    ):
        self._model, self._targets, self._elsewhere = model, list(targets), elsewhere
        self._how, self._learned = how, learned
        self._device = device_of(model)
        self._inside = {t for t in self._targets if isinstance(t, ModuleCall)}
        calls = [call for call in map(_call_of, self._targets) if call]
        nodes = {ref.node for call in calls for ref in upstream(call.inputs)} | self._inside
        nodes |= {t.call for t in self._targets if isinstance(t, Picked) and isinstance(t.call, ModuleCall)}
        self._steps = sorted(nodes, key=lambda node: node.order)
        self.slices = has_wide_head(model)
        names = {getattr(call, "name", "") for call in calls}
        self._look = bool(self._inside or names & _TRACED_BACK)
        self._grad = False
        self._half = elsewhere.half

    def describe(self) -> str:
        """Of what the slopes are, in a few words."""
        return " and ".join(dict.fromkeys(map(described, self._targets)))

    @property
    def order(self) -> int:
        """When it began, to be compared with that of others."""
        return min((step.order for step in self._steps), default=0)

    @property
    def modules(self) -> set[str]:
        """The classes of the modules that are run."""
        return {step.name for step in self._steps if isinstance(step, ModuleCall)}

    @property
    def precise(self) -> bool:
        """Whether a difference of its logits has digits to check with."""
        return not self._half

    @property
    def _autocast(self) -> bool:
        return bool(self._learned.autocast) or any(step.autocast for step in self._steps)

    def along(self) -> Result:
        """The logits as dual tensors with their slopes along the update; to be called at a dual level."""
        with differentiable(self._model, self._learned.autocast), self._elsewhere.along() as values:
            while self.slices:
                known = len(self._learned.dense)
                try:
                    return self._run(values, slices=True)
                except NotATailError:
                    self.slices = len(self._learned.dense) > known  # and others may still be worth it
            return self._run(values)

    def at(self, scale: float) -> Result:
        """The logits with the parameters at theta_old + scale * u, in full precision."""
        try:
            return self._at(scale)
        except RuntimeError as error:
            if self._grad or "does not require grad" not in str(error):
                raise
            self._grad = True  # the forward takes gradients of its own
            return self._at(scale)

    def _at(self, scale: float) -> Result:
        with differentiable(self._model, self._learned.autocast), self._elsewhere.at(scale) as values:
            return _settled(self._run(values), values)

    def beside(self, scale: float) -> list[tuple[Softmax, Softmax]] | None:
        """The logits that training made, and those with the parameters at theta_old + scale * u, by the same kernels.

        None where training's were not kept or are not to be compared: behind autocast, inside a module, in halves.
        """
        kept = [t.logits.tensor if isinstance(t, SoftmaxCall) and t.logits else None for t in self._targets]
        if self._half or self._autocast or any(z is None for z in kept):
            return None
        with eager(), self._elsewhere.beside(scale) as values:
            moved = _settled(self._run(values), values).softmaxes
        fits = len(moved) == len(kept) and all(
            m.columns is None and z is not None and m.logits.shape == z.shape for m, z in zip(moved, kept, strict=False)
        )
        return [(m._replace(logits=z), m) for m, z in zip(moved, kept, strict=True) if z is not None] if fits else None

    def with_graph(self, place: Whole, read: Callable[[Result, Values], T]) -> T:
        """What can be read off the logits while they have a graph, from the parameters before the step on.

        It is read where the forward was run, since a backward pass may run parts of that again.
        """
        found: list[T] = []
        # What attention drops is drawn in another way by other kernels.
        draws = any(step.random is not None for step in self._steps)
        with differentiable(self._model, self._learned.autocast, attention=draws), unhooked(self._model):
            with place.leaves() as values:
                self._run(values, read=lambda result: found.append(read(result, values)))
        return found[0]

    def recognise(self, result: Result, closely: bool = True) -> None:
        """Make sure that this is what training saw.

        To the bit, if need be by another run with the very kernels that training used; some of them are
        others without gradients.

        Args:
            result: What measuring came to, with the parameters before the step.
            closely: Or else, in full precision, but for the rounding of other kernels.

        Raises:
            OtherLogitsError: If it is not.
            RuntimeError: If it is, but not with the parameters replaced.
        """
        seen = self._seen()
        if not seen or same(seen, result.samples):
            return
        if not (closely or self._autocast or self._half) and near(seen, result.samples):
            return
        with eager(), self._elsewhere.before() as values:
            try:
                with nothing_saved():
                    again = self._run(values, as_trained=True).samples
            except Exception:  # the forward goes back by itself, for gradients of its own
                again = self._run(values, as_trained=True).samples
        half = self._half or self._autocast or any(s.dtype in HALVES for s in seen)
        exact = self._device.type == "cpu"
        compare(seen, again, None if self._how.running_averages else result.samples, exact, half)

    def _seen(self) -> list[Tensor]:
        seen: list[Tensor] = []
        for target in self._targets:
            if isinstance(target, ModuleCall):
                seen += target.samples
            elif isinstance(target, SoftmaxCall):
                seen.append(target.sample)
            elif isinstance(target, Picked):
                if target.error:
                    raise target.error
                assert target.sample is not None
                seen.append(target.sample)
        return seen

    # Running it

    def _run(
        self,
        values: Values,
        slices: bool = False,
        as_trained: bool = False,
        read: Callable[[Result], None] = lambda result: None,
    ) -> Result:
        lookout = Lookout(slices, self._learned.dense)
        outputs: dict[Step, Any] = {}
        inside: dict[Step, list[Softmax]] = {}

        def resolved(step: Step) -> tuple[tuple[Any, ...], dict[str, Any]]:
            up = values.upcast or (step.autocast is not None and not as_trained)
            writes = isinstance(step, (ModuleCall, FunctionCall)) and step.writes

            def value(leaf: Any) -> Any:
                if isinstance(leaf, Ref):
                    found = leaves(outputs[leaf.node], Tensor)[leaf.leaf]
                    return found.clone() if writes else found
                if isinstance(leaf, HeldGenerator):
                    return leaf.generator
                if isinstance(leaf, Held):
                    tensor = leaf.tensor.clone() if writes else leaf.tensor
                    return tensor.float() if up and tensor.dtype in HALVES else tensor
                return values.by_parameter.get(leaf, leaf)

            kinds = (Ref, Held, HeldGenerator, Tensor)
            return map_leaves(step.args, kinds, value, fresh=True), map_leaves(step.kwargs, kinds, value, fresh=True)

        with torch.set_grad_enabled(self._grad or as_trained or values.graph), ExitStack() as stack:
            stack.enter_context(replaying(random_state(self._device), self._device))
            stack.enter_context(self._how.shield())
            stack.enter_context(no_traces(self._model))
            if self._look or slices:
                stack.enter_context(lookout)
            for step in self._steps:
                lookout.inside = step in self._inside
                with self._as_it_was(step, as_trained, values.graph), self._others_as_they_were(step, values):
                    outputs[step] = _made(step, *resolved(step))
                if lookout.inside:
                    inside[step], lookout.found, lookout.inside = lookout.found, [], False
            softmaxes: list[Softmax] = []
            samples: list[Tensor] = []
            sources: list[Target] = []
            for target in self._targets:
                if isinstance(target, ModuleCall):
                    softmaxes += inside[target]
                    samples += [_sample(t) for t in floating_outputs(outputs[target])]
                elif isinstance(target, SoftmaxCall):
                    assert isinstance(target.call, FunctionCall)
                    args, kwargs = resolved(target.call)
                    samples.append(_sample(args[0] if args else kwargs["input"]))
                    taken = [s.of(target.used) for s in lookout.softmaxes(target.call.function, args, kwargs)]
                    softmaxes += [s.named(target.labels) for s in taken if s]
                elif isinstance(target, Picked):
                    assert isinstance(target.call, ModuleCall)
                    softmaxes.append(Softmax(target.pick(outputs[target.call])))
                    samples.append(_sample(softmaxes[-1].logits))
                else:
                    with self._as_it_was(Step((), {}, None), as_trained):
                        softmaxes.append(Softmax(target(self._model)))
                sources += [target] * (len(softmaxes) - len(sources))
            lookout.finish()
            result = Result(softmaxes, samples, sources)
            read(result)
        return result

    @contextmanager
    def _others_as_they_were(self, step: Step, values: Values) -> Iterator[None]:
        """What another optimizer has moved since this call is where it was, itself or what stands for it."""
        since = [(p, old) for p, old in self._how.since(step.order) if p not in self._elsewhere.moved]
        others = [(values.by_parameter.get(p, p), old) for p, old in since]
        kept = [(tensor, tensor.data) for tensor, _ in others]
        try:
            for tensor, old in others:
                tensor.data = old.to(tensor.dtype)
            yield
        finally:
            for tensor, data in kept if not values.graph else []:  # a graph of our own is still to be gone through
                tensor.data = data

    @contextmanager
    def in_full_precision(self) -> Iterator[None]:
        """No autocast, wherever it may be on."""
        with ExitStack() as stack:
            for kind in {"cpu", self._device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    @contextmanager
    def _as_it_was(self, step: Step, as_trained: bool, graph: bool = False) -> Iterator[None]:
        with ExitStack() as stack:
            if step.random is not None:
                stack.enter_context(replaying(step.random, self._device))
            dtype = step.autocast if as_trained else None
            for kind in {"cpu", self._device.type}:
                here = dtype if kind == self._device.type else None
                stack.enter_context(torch.autocast(kind, dtype=here, enabled=here is not None, cache_enabled=False))
            for held in leaves(step.args, HeldGenerator) + leaves(step.kwargs, HeldGenerator):
                stack.callback(held.generator.set_state, held.generator.get_state())
                held.generator.set_state(held.state)
            if isinstance(step, ModuleCall):
                if not step.under_grad and not graph:
                    stack.enter_context(torch.no_grad())
                averages = self._how.running_averages and not as_trained
                for module, mode in zip(step.module.modules(), step.training, strict=False):
                    module.training = mode and not (averages and isinstance(module, _NormBase))
                for kept in step.memory:
                    kept.put_back()
            yield


def _call_of(target: Target) -> FunctionCall | ModuleCall | None:
    if isinstance(target, (SoftmaxCall, Picked)):
        if isinstance(target.call, Exception):
            raise target.call
        return target.call
    return target if isinstance(target, ModuleCall) else None


def order_of(target: Target) -> int:
    """When training came to it."""
    call = _call_of(target)
    return call.order if call else 0


def taken_in(target: Target) -> torch.dtype | None:
    """In which dtype training took a softmax; None if that is not known."""
    seen = isinstance(target, SoftmaxCall) and isinstance(target.call, FunctionCall) and not target.call.autocast
    return target.sample.dtype if seen and isinstance(target, SoftmaxCall) else None


def described(target: Target) -> str:
    """Of what it has logits, in a few words."""
    if isinstance(target, ModuleCall):
        return f"the loss inside {target.name}"
    if isinstance(target, (SoftmaxCall, Picked)):
        call = _call_of(target)
        assert call
        if isinstance(target, Picked):
            return f"logits= of {call.name}"
        names = {ref.node.name for ref in upstream(call.inputs) if isinstance(ref.node, ModuleCall)}
        return f"{call.name} of {', '.join(sorted(names)) or 'parameters'}"
    return "forward="


def _made(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if isinstance(step, ModuleCall):
        return step.module(*args, **kwargs)
    assert isinstance(step, FunctionCall)
    if not step.in_place:
        return step.function(*args, **kwargs)
    changed = args[0].clone()
    step.function(changed, *args[1:], **kwargs)
    return changed


def _settled(result: Result, values: Values) -> Result:
    """The same, with logits that stay as they are when borrowed memory does not."""
    borrowed = {value.untyped_storage().data_ptr() for value in values.borrowed}
    return result._replace(softmaxes=[s.apart_from(borrowed) for s in result.softmaxes])


def _sample(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():  # what we do ourselves is nothing to look out for
        return sample(forward_ad.unpack_dual(tensor).primal)
