from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from stepguard.geometry import motion_of, step_ratio
from stepguard.guard.hooks import hook_step
from stepguard.guard.movement import Movement
from stepguard.guard.policy import Action, Cadence, check_cadence, check_policy, step_scale
from stepguard.guard.ranks import agree, is_first
from stepguard.probe import CallCapture, Replay
from stepguard.records import Event, Reading, Recorder, TensorBoard

log = logging.getLogger("stepguard")


class Guard:
    """Stands between an optimizer and its model; made by :func:`attach` or by a trainer's callback.

    Attributes:
        last: The latest :class:`Reading`, or None before the first.
        step: Optimizer steps seen so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        action: Action = "clamp",
        target: float = 1.0,
        cadence: Cadence = "auto",
        logits: Callable[[Any], Tensor] | None = None,
        forward: Callable[[nn.Module], Tensor] | None = None,
        quantile: float = 1.0,
        strict: bool = False,
        recorders: Sequence[Recorder] = (),
    ):
        check_policy(action, target, quantile)
        self._every = check_cadence(cadence)
        self._model, self._optimizer, self._forward = model, optimizer, forward
        self._action, self._target, self._quantile, self._strict = action, float(target), float(quantile), strict
        self._recorders = list(recorders)
        self.last: Reading | None = None
        self.step = 0
        self._movement = Movement()
        self._replay = Replay(model, logits)
        self._capture = None if forward else CallCapture(model, logits)
        self._hooks = hook_step(optimizer, self._begin, self._end)
        self._begun = False
        self._held: list[tuple[Tensor, Tensor]] = []
        self._warned: set[str] = set()
        self._seconds = 0.0
        self._previous_end: float | None = None

    def detach(self) -> None:
        """Remove every hook and close the log; model and optimizer are as if never guarded."""
        for handle in self._hooks:
            handle.remove()
        if self._capture:
            self._capture.remove()
        for recorder in self._recorders:
            recorder.close()
        self._hooks, self._recorders, self._movement, self._begun = (), [], Movement(), False

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly as it would have."""
        return {"version": 1, "step": self.step, "last": self.last and self.last.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier guard."""
        self.step = state["step"]
        self.last = state["last"] and Reading(**state["last"])

    # One step: _begin (gradients are there, nothing has moved) -> the real update -> _end.

    def _begin(self) -> None:
        started = time.perf_counter()
        self._begun = False
        if self.step % self._every == 0:
            try:
                if self._action != "observe":
                    self._hold_bad_gradients()
                self._movement.begin(self._optimizer)
                self._begun = True
            except Exception as error:
                self._cannot(error)
        self._seconds = time.perf_counter() - started

    def _end(self) -> None:
        started = time.perf_counter()
        calls_seen = self._capture.forwards if self._capture else 0
        calls = self._capture.take() if self._capture else []
        held = self._release_gradients()
        try:
            if self._begun:
                self._decide(calls, calls_seen, held, started)
        finally:
            self._begun = False
            self.step += 1
            self._previous_end = time.perf_counter()

    def _decide(self, calls: list[Any], calls_seen: int, held: bool, started: float) -> None:
        r: float | None = None
        tau = math.nan
        failure: Exception | None = None
        try:
            norms = self._movement.end()
            tau = math.nan if held else math.sqrt(sum(n * n for n in norms))
            if tau == 0:
                r = 0.0
            elif not math.isfinite(tau):
                r = math.nan
            else:
                r = self._measure(calls, calls_seen, norms)
        except Exception as error:
            failure = error
        try:
            r = agree(r, self._movement.params[0].device)
        except Exception as error:
            r, failure = None, error
        if r is None:
            self._cannot(failure or RuntimeError("another rank could not measure"))
        elif tau == 0:
            self._record(Event(self.step, "skipped", f"step {self.step}: the optimizer moved nothing"))
        else:
            scale = step_scale(self._action, r, self._target)
            if scale != 1.0:
                self._movement.rescale(scale)
            self._report(r, tau, scale, started)

    def _measure(self, calls: list[Any], calls_seen: int, norms: list[float]) -> float:
        """The batch's r for the movement of this step, at the parameters before it."""
        name_of = {id(p): name for name, p in self._model.named_parameters()}
        moved = [
            (name_of[id(p)], old, u)
            for p, old, u, norm in zip(
                self._movement.params, self._movement.old, self._movement.update, norms, strict=True
            )
            if norm > 0 and id(p) in name_of
        ]
        params = {name: old for name, old, _ in moved}
        update = {name: u for name, _, u in moved}
        if self._forward:
            motions = [motion_of(*self._replay.function(self._forward, params, update))]
        else:
            assert self._capture is not None
            if not calls:
                raise RuntimeError(_no_call(calls_seen))
            with self._capture.paused():
                for call in calls:
                    if call.error:
                        raise call.error
                motions = [motion_of(*self._replay.call(call, params, update)) for call in calls]
        ratios = torch.cat([step_ratio(m).flatten() for m in motions])
        return float(ratios.max() if self._quantile == 1 else ratios.quantile(self._quantile))

    def _report(self, r: float, tau: float, scale: float, started: float) -> None:
        lr = max(float(group["lr"]) for group in self._optimizer.param_groups if "lr" in group)
        now = time.perf_counter()
        seconds = self._seconds + now - started
        reading = Reading(
            step=self.step,
            r=r,
            tau=tau,
            rho=tau / r if r else math.inf,
            spread=math.pi * r,
            scale=scale,
            lr=lr,
            lr_applied=scale * lr,
            target=self._target,
            cost_share=seconds / (now - self._previous_end) if self._previous_end else None,
        )
        self.last = reading
        self._record(reading)
        if reading.breach:
            kind = "breach" if self._action == "observe" else "clamp" if scale else "withheld"
            event = Event(self.step, kind, describe(reading, kind), reading)
            log.info(event.message)
            self._record(event)

    def _cannot(self, error: Exception) -> None:
        """Fail open: the step stands as the optimizer made it, and the user is told once."""
        reason = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        message = f"step {self.step} was not measured and stands as the optimizer made it. {reason}"
        self._record(Event(self.step, "unmeasured", message))
        if self._strict:
            raise error
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"stepguard: {message} (said once; every such step is in the log)", stacklevel=2)

    def _record(self, what: Reading | Event) -> None:
        for recorder in self._recorders:
            try:
                recorder.reading(what) if isinstance(what, Reading) else recorder.event(what)
            except Exception as error:
                if self._strict:
                    raise
                reason = f"{type(recorder).__name__} could not write: {error}"
                if reason not in self._warned:
                    self._warned.add(reason)
                    warnings.warn(f"stepguard: {reason}; training goes on without it", stacklevel=2)

    def _hold_bad_gradients(self) -> None:
        """Keep gradients that are not finite from the optimizer, whose moments they would spoil for good.

        Optimizers pass over parameters without gradient, so the step then moves nothing and its state
        stays sound. Where a GradScaler has told the optimizer what it found, it decides.
        """
        if getattr(self._optimizer, "found_inf", None) is not None:
            return
        params = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        grads = [p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in params]
        if not grads or math.isfinite(_total_norm(grads)):
            return
        if all(bool(g.isfinite().all()) for g in grads):  # finite, only their squares were not
            return
        self._held = [(p, p.grad) for p in params]
        for p in params:
            p.grad = None

    def _release_gradients(self) -> bool:
        held, self._held = self._held, []
        for p, grad in held:
            p.grad = grad
        return bool(held)


def _total_norm(tensors: list[Tensor]) -> float:
    norms = torch._foreach_norm([t.detach() for t in tensors])
    return float(torch.stack([n.to(norms[0].device, torch.float32) for n in norms]).sum())


def _no_call(calls_seen: int) -> str:
    if calls_seen:
        return (
            "the model was called, but no gradient reached the logits it returned. Was the loss computed from them, and "
            "were labels passed?"
        )
    return (
        "the model was not called under grad since the last step. Attach to the module that the training step calls "
        "(module= in the Lightning callback), or pass forward=, a function that runs the model on a batch and returns "
        "its logits"
    )


def describe(reading: Reading, kind: str) -> str:
    """One sentence for a reading beyond its target."""
    text = f"step {reading.step}: r = {reading.r:.3g} (target {reading.target:g}), tau = {reading.tau:.3g}, "
    text += f"rho = {reading.rho:.3g}: "
    if kind == "breach":
        return text + "observed only, the step was made"
    if kind == "withheld":
        return text + "not finite, so the step was withheld and the parameters kept"
    return text + f"scaled by {reading.scale:.3g}, lr {reading.lr:.3g} -> {reading.lr_applied:.3g}"


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    action: Action = "clamp",
    target: float = 1.0,
    cadence: Cadence = "auto",
    logits: Callable[[Any], Tensor] | None = None,
    forward: Callable[[nn.Module], Tensor] | None = None,
    quantile: float = 1.0,
    strict: bool = False,
    log_dir: str | PathLike[str] | None = None,
    recorders: Sequence[Recorder] = (),
) -> Guard:
    r"""Guard every step of an optimizer, in any training loop, with the loop itself unchanged.

    At each ``optimizer.step()`` the update it really made, u, is measured on the batch that it came
    from (every call of ``model`` since the last step whose logits the backward pass reached):
    :math:`r = \max_x \Delta_a(x) / \pi` with the slopes :math:`a = J_z u` taken at the parameters before
    the step (arXiv 2603.13552).

    Args:
        model: The module whose forward returns the logits: as a tensor, the first of a tuple, or
            ``.logits``; ``[N, C]``, ``[N, T, C]`` or ``[N, C, H, W]``.
        optimizer: Any torch optimizer over this model's parameters.
        action: ``"observe"`` never changes a step; ``"clamp"`` multiplies the update by
            min(1, target / r); ``"drive"`` by target / r.
        target: Limit on r. 1 is the radius itself, smaller is more careful.
        cadence: ``"auto"`` and ``"every"`` measure every step; a number k every k-th step only, which
            lets the steps between go unmeasured.
        logits: Function from the model's output to its logits ``[..., C]``, where they are not found.
        forward: Function from the model to logits ``[..., C]``, run instead of the batch's own calls,
            for instance ``lambda m: m(x)`` with a fixed x.
        quantile: Which quantile over the samples counts as the batch's r; 1 is the maximum.
        strict: Raise when a step cannot be measured, instead of warning once and going on.
        log_dir: Folder for TensorBoard; None writes nothing.
        recorders: Further places to write to, for instance :class:`stepguard.records.Memory`.

    Returns:
        The guard; ``guard.detach()`` undoes it, and it is a context manager.

    Raises:
        ValueError: For a setting that makes no sense, or an optimizer whose parameters are not the model's.
        TypeError: If ``model`` is not a module or ``optimizer`` not a torch optimizer.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
        >>> with attach(model, optimizer) as guard:
        ...     loss = torch.nn.functional.cross_entropy(model(torch.eye(2)), torch.tensor([0, 1]))
        ...     loss.backward()
        ...     optimizer.step()
        >>> guard.last.r > 1, round(guard.last.r * guard.last.scale, 6)
        (True, 1.0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer  # a trainer's wrapper; the hooks belong on what it wraps
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(model, DistributedDataParallel):
        model = model.module
    check_policy(action, target, quantile)
    check_cadence(cadence)
    check_owned(model, optimizer)
    written: list[Recorder] = [TensorBoard(log_dir)] if log_dir is not None and is_first() else []
    return Guard(
        model,
        optimizer,
        action=action,
        target=target,
        cadence=cadence,
        logits=logits,
        forward=forward,
        quantile=quantile,
        strict=strict,
        recorders=[*written, *recorders],
    )


def check_owned(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that moves anything but the model's parameters.

    Raises:
        ValueError: Saying how many of its tensors are strangers, and what to try.
    """
    own = {id(p) for p in model.parameters()}
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in own for p in moved)
    if strangers:
        raise ValueError(
            f"{strangers} of the optimizer's {len(moved)} tensors are not parameters of this "
            f"{type(model).__name__}. If the model was copied, rebuilt or moved by FSDP after the optimizer was made, "
            "make the optimizer again; if the optimizer also trains another module, attach to a module that holds both"
        )
