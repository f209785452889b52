from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _NormBase

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
from stepguard.probe.wide_head import NotATailError, has_wide_head

Target = SoftmaxCall | Picked | ModuleCall | Callable[[nn.Module], Tensor]
"""What has logits: a softmax, a module with some inside, or a user's function from the model to logits."""
_TRACED_BACK = {"binary_cross_entropy", "nll_loss"} | LOGARITHMS


class Manner(NamedTuple):
    """How to run again what training did."""

    shield: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context for every run, in which what the model reports is not heard."""
    running_averages: bool = False
    """Whether normalisation layers use their running averages, as in evaluation, although they train."""
    dense: set[torch.Size] = set()
    """Shapes of wide layers whose slopes cannot be left for later; found out as it goes."""
    since: Callable[[int], Sequence[tuple[Tensor, Tensor]]] = lambda order: ()
    """Parameters that other optimizers have moved since a moment, and where they were then."""


class Result(NamedTuple):
    """What a replay came to."""

    softmaxes: list[Softmax]
    samples: list[Tensor]
    """Of what training saw of it, in a fixed order."""


class Rerun:
    """What a training step did on one batch, to be run again at other parameters, leaving no trace of it.

    Args:
        model: The attached module.
        targets: What has logits, of one batch.
        elsewhere: How to put its parameters where they shall be.
        how: What the user chose about it.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Sequence[Target],
        elsewhere: Elsewhere,
        how: Manner,
    ):
        self._model, self._targets, self._elsewhere, self._how = model, list(targets), elsewhere, how
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
        return " and ".join(dict.fromkeys(map(_described, self._targets)))

    @property
    def modules(self) -> set[str]:
        """The classes of the modules that are run."""
        return {step.name for step in self._steps if isinstance(step, ModuleCall)}

    @property
    def precise(self) -> bool:
        """Whether a difference of its logits has digits to check with."""
        return not self._half

    def along(self) -> Result:
        """The logits as dual tensors with their slopes along the update; to be called at a dual level."""
        with differentiable(self._model), self._elsewhere.along() as values:
            while self.slices:
                known = len(self._how.dense)
                try:
                    return self._run(values, slices=True)
                except NotATailError:
                    self.slices = len(self._how.dense) > known  # and others may still be worth it
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
        with differentiable(self._model), self._elsewhere.at(scale) as values:
            return _settled(self._run(values), values)

    def beside(self, scale: float) -> list[tuple[Softmax, Softmax]] | None:
        """The logits that training made, and those with the parameters at theta_old + scale * u, by the same kernels.

        None where training's were not kept or are not to be compared: behind autocast, inside a module, in halves.
        """
        kept = [t.logits.tensor if isinstance(t, SoftmaxCall) and t.logits else None for t in self._targets]
        if self._half or any(z is None for z in kept) or any(step.autocast for step in self._steps):
            return None
        with eager(), self._elsewhere.beside(scale) as values:
            moved = _settled(self._run(values), values).softmaxes
        fits = len(moved) == len(kept) and all(
            m.columns is None and z is not None and m.logits.shape == z.shape for m, z in zip(moved, kept, strict=False)
        )
        return [(m._replace(logits=z), m) for m, z in zip(moved, kept, strict=True) if z is not None] if fits else None

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
        autocast = any(step.autocast for step in self._steps)
        if not (closely or autocast or self._half) and near(seen, result.samples):
            return
        with eager(), self._elsewhere.before() as values:
            try:
                with nothing_saved():
                    again = self._run(values, as_trained=True).samples
            except Exception:  # the forward goes back by itself, for gradients of its own
                again = self._run(values, as_trained=True).samples
        half = self._half or any(s.autocast for s in self._steps) or any(s.dtype in HALVES for s in seen)
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

    def _run(self, values: Values, slices: bool = False, as_trained: bool = False) -> Result:
        lookout = Lookout(slices, self._how.dense)
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

        with torch.set_grad_enabled(self._grad or as_trained), ExitStack() as stack:
            stack.enter_context(replaying(random_state(self._device), self._device))
            stack.enter_context(self._how.shield())
            stack.enter_context(no_traces(self._model))
            if self._look or slices:
                stack.enter_context(lookout)
            for step in self._steps:
                lookout.inside = step in self._inside
                with self._as_it_was(step, as_trained), self._others_as_they_were(step, values):
                    outputs[step] = _made(step, *resolved(step))
                if lookout.inside:
                    inside[step], lookout.found, lookout.inside = lookout.found, [], False
            softmaxes: list[Softmax] = []
            samples: list[Tensor] = []
            for target in self._targets:
                if isinstance(target, ModuleCall):
                    softmaxes += inside[target]
                    samples += [_sample(t) for t in floating_outputs(outputs[target])]
                elif isinstance(target, SoftmaxCall):
                    assert isinstance(target.call, FunctionCall)
                    args, kwargs = resolved(target.call)
                    samples.append(_sample(args[0] if args else kwargs["input"]))
                    taken = [s.of(target.used) for s in lookout.softmaxes(target.call.function, args, kwargs)]
                    softmaxes += [s for s in taken if s]
                elif isinstance(target, Picked):
                    assert isinstance(target.call, ModuleCall)
                    softmaxes.append(Softmax(target.pick(outputs[target.call])))
                    samples.append(_sample(softmaxes[-1].logits))
                else:
                    with self._as_it_was(Step((), {}, None), as_trained):
                        softmaxes.append(Softmax(target(self._model)))
            lookout.finish()
        return Result(softmaxes, samples)

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
            for tensor, data in kept:
                tensor.data = data

    @contextmanager
    def in_full_precision(self) -> Iterator[None]:
        """No autocast, wherever it may be on."""
        with ExitStack() as stack:
            for kind in {"cpu", self._device.type}:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    @contextmanager
    def _as_it_was(self, step: Step, as_trained: bool) -> Iterator[None]:
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
                if not step.under_grad:
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


def _described(target: Target) -> str:
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
