from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.gradients import return_gradients, withhold_gradients
from stepguard.guard.hooks import hook_step
from stepguard.guard.movement import Movement
from stepguard.guard.policy import Settings, step_scale
from stepguard.guard.ranks import agree
from stepguard.guard.statistics import RunningStatistics
from stepguard.probe import NOTHING_SEEN, Manner, Probe, SeenStep, no_modes
from stepguard.records import Event, Reading, Recorder, breach_event

log = logging.getLogger("stepguard")
_MOST_SAID = 100
_MOVED = (
    "The optimizer moved the parameters before it ran the closure, as SAM does, so the gradients are not those of "
    "where the step starts from"
)


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
        settings: Settings,
        recorders: Sequence[Recorder] = (),
        shield: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.last: Reading | None = None
        self.step = 0
        self._settings, self._optimizer, self._recorders = settings, optimizer, list(recorders)
        self._movement = Movement()
        self._due = False
        self._failure: Exception | None = None
        self._seen = NOTHING_SEEN
        self._held: list[tuple[Tensor, Tensor]] = []
        self._said: set[object] = set()
        self._seconds = 0.0
        self._previous_end: float | None = None
        self._statistics = RunningStatistics(model) if settings.action != "observe" else None
        keep = self._statistics.keep if self._statistics else None
        self._probe = Probe(
            model,
            self._parameters,
            settings.logits,
            settings.forward,
            before_first=keep,
            how=Manner(shield, settings.batch_norm == "eval", set()),
        )
        self._hooks = hook_step(optimizer, self._begin, self._end)

    def detach(self) -> None:
        """Remove every hook and close the log; model and optimizer are as if never guarded."""
        for handle in self._hooks:
            handle.remove()
        self._probe.remove()
        for recorder in self._recorders:
            try:
                recorder.close()
            except Exception as error:
                self._warn_once(recorder, f"{type(recorder).__name__} could not be closed ({error})")
        self._hooks, self._recorders, self._movement, self._due = (), [], Movement(), False

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly as it would have."""
        last = self.last and self.last.as_dict()
        return {"version": 1, "step": self.step, "last": last, "probe": self._probe.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier guard."""
        self.step = state["step"]
        self.last = state["last"] and Reading(**state["last"])
        self._probe.load_state_dict(state["probe"])

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    # One step: _begin (gradients are there, nothing has moved) -> the real update -> _end.

    def _begin(self, moved: bool) -> None:
        started = time.perf_counter()
        # The batch is what was seen up to here: LBFGS calls its closure again at other parameters.
        self._seen = self._probe.take()
        self._due = self.step % self._settings.every == 0
        return_gradients(self._held)  # of a step that raised and never came to its end
        self._held = []
        if self._due:
            try:
                if moved:
                    raise ValueError(_MOVED)
                if self._settings.action != "observe":
                    self._held = withhold_gradients(self._optimizer)
                self._movement.begin(self._optimizer)
            except Exception as error:
                self._failure = error
        self._seconds = self._seen.seconds + time.perf_counter() - started

    def _end(self) -> None:
        started = time.perf_counter()
        self._probe.take()
        seen, self._seen = self._seen, NOTHING_SEEN
        failure, self._failure = self._failure, None
        held, self._held = self._held, []
        return_gradients(held)
        try:
            if self._due:
                with no_modes():  # what a user counts is not for what we do
                    self._decide(seen, bool(held), failure, started)
        finally:
            if self._statistics and self._settings.forward:  # forwards are not seen, so the end of a step must do
                self._statistics.keep()
            self._due = False
            self.step += 1
            self._probe.resume()
            self._previous_end = time.perf_counter()

    def _decide(self, seen: SeenStep, withheld: bool, failure: Exception | None, started: float) -> None:
        tau, r = math.nan, None
        try:
            if failure is None:
                norms = self._movement.end()
                tau = math.nan if withheld else math.hypot(*norms)
                r = self._measure(seen, norms) if 0 < tau < math.inf else 0.0 if tau == 0 else math.nan
        except Exception as error:
            failure = error
        try:
            # Whatever happened here, the other ranks wait for this.
            r = agree(r, next(iter(self._parameters())).device)
        except Exception as error:
            r, failure = None, error
        if r is None:
            self._cannot(failure or RuntimeError("another rank could not measure"))
        elif tau == 0:
            self._record(Event(self.step, "skipped", f"step {self.step}: the optimizer moved nothing"))
        else:
            scale = step_scale(self._settings.action, r, self._settings.target)
            if scale != 1:
                self._movement.rescale(scale)
            if scale == 0 and self._statistics:
                self._statistics.put_back()
            self._report(r, tau, scale, started)

    def _measure(self, seen: SeenStep, norms: list[float]) -> float:
        m = self._movement
        moved = [(p, old, u) for p, old, u, norm in zip(m.params, m.old, m.update, norms, strict=True) if norm > 0]
        before = self._probe.estimator.kind
        spreads, quantile = self._probe.spreads(seen, moved), self._settings.quantile
        if self._probe.estimator.kind != before:
            self._fall_back()
        self._tell_what_is_judged()
        if not spreads.numel():
            return 0.0  # the loss ignored every sample
        return float(spreads.max() if quantile == 1 else spreads.float().quantile(quantile)) / math.pi

    def _report(self, r: float, tau: float, scale: float, started: float) -> None:
        # An optimizer that sets its own rate, such as Adafactor's relative steps, has None here.
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        lr = max((float(rate) for rate in rates if rate is not None), default=math.nan)
        now = time.perf_counter()
        self.last = reading = Reading(
            step=self.step,
            r=r,
            tau=tau,
            rho=tau / r if r else math.inf,
            spread=math.pi * r,
            scale=scale,
            lr=lr,
            lr_applied=scale * lr,
            target=self._settings.target,
            estimator=self._probe.estimator.kind,
            cost_share=(self._seconds + now - started) / (now - self._previous_end) if self._previous_end else None,
        )
        self._record(reading)
        if reading.breach:
            event = breach_event(reading)
            log.info(event.message)
            self._record(event)

    def _tell_what_is_judged(self) -> None:
        kind = {"forward": "forward mode", "difference": "a finite difference"}[self._probe.estimator.kind]
        message = f"r is that of {self._probe.found}, measured by {kind}"
        if message not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(message)
            log.info(message)
            self._record(Event(self.step, "found", f"step {self.step}: {message}"))

    def _fall_back(self) -> None:
        message = f"r is measured by a finite difference from step {self.step} on: {self._probe.estimator.reason}"
        self._record(Event(self.step, "fallback", message))
        self._warn_once("fallback", message)

    def _cannot(self, error: Exception) -> None:
        """Fail open: the step stands as the optimizer made it, and the user is told once."""
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        message = f"step {self.step} was not measured and stands as the optimizer made it. {reason}"
        self._record(Event(self.step, "unmeasured", message))
        if self._settings.strict:
            raise error
        # Known by the line that raised it: the text may hold numbers that differ at every step.
        self._warn_once(_origin(error), f"{message} (said once; the log has every such step)")
        # The frames of a kept traceback would keep the batch alive.
        error.__traceback__ = None

    def _record(self, what: Reading | Event) -> None:
        for recorder in self._recorders:
            try:
                if isinstance(what, Reading):
                    recorder.reading(what)
                else:
                    recorder.event(what)
            except Exception as error:
                if self._settings.strict:
                    raise
                reason = f"{type(recorder).__name__} could not write ({error}); training goes on without it"
                self._warn_once(reason, reason)

    def _warn_once(self, key: object, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            try:
                warnings.warn(f"stepguard: {message}", stacklevel=2)
            except UserWarning:  # the user made warnings errors, which must not end the run in the middle of a step
                log.warning("stepguard: %s", message)


def _origin(error: Exception) -> object:
    trace = error.__traceback__
    if trace is None:
        return str(error)
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
