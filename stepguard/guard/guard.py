from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.cost import Cost
from stepguard.guard.gradients import return_gradients, withhold_gradients
from stepguard.guard.hooks import hook_step
from stepguard.guard.movement import Movement
from stepguard.guard.policy import Settings, step_scale
from stepguard.guard.ranks import agree, agree_on_any
from stepguard.guard.reporter import Reporter
from stepguard.guard.statistics import RunningStatistics
from stepguard.guard.trigger import Trigger
from stepguard.probe import NOTHING_SEEN, Manner, Probe, SeenStep, no_modes
from stepguard.records import Event, Reading, Recorder, breach_event

_MOVED = (
    "The optimizer moved the parameters before it ran the closure, as SAM does, so the gradients are not those of "
    "where the step starts from"
)
_OVER = (
    "steps that may be near the limit are all measured, which takes more than the {:.0%} of the time that measuring is "
    "given where they are not"
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
        self._settings, self._optimizer = settings, optimizer
        self._reporter = Reporter(recorders, settings.strict)
        self._movement = Movement()
        self._trigger = Trigger(settings.target, settings.budget) if settings.triggered else None
        self._due = False
        self._failure: Exception | None = None
        self._seen = NOTHING_SEEN
        self._held: list[tuple[Tensor, Tensor]] = []
        self._cost = Cost()
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
        self._reporter.close()
        self._hooks, self._movement, self._due = (), Movement(), False

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly as it would have."""
        last = self.last and self.last.as_dict()
        trigger = self._trigger and self._trigger.state_dict()
        return {"version": 1, "step": self.step, "last": last, "probe": self._probe.state_dict(), "trigger": trigger}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier guard."""
        self.step = state["step"]
        self.last = state["last"] and Reading(**state["last"])
        self._probe.load_state_dict(state["probe"])
        if self._trigger and state.get("trigger"):
            self._trigger.load_state_dict(state["trigger"])

    @property
    def _device(self) -> torch.device:
        return next(iter(self._parameters())).device

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
        self._cost.add(self._seen.seconds + time.perf_counter() - started)

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
            self._previous_end = now = time.perf_counter()
            self._cost.add(now - max(started, self._cost.since))

    def _decide(self, seen: SeenStep, withheld: bool, failure: Exception | None, started: float) -> None:
        norms: list[float] = []
        tau = math.nan
        try:
            if failure is None:
                norms = self._movement.end()
                tau = math.nan if withheld else math.hypot(*norms)
        except Exception as error:
            failure = error
        why = self._why(norms, tau, failure)
        if why is None:
            if tau == 0:
                self._skipped()
            self._unread(started)
            return
        r = None
        try:
            if failure is None:
                r = self._measure(seen, norms) if 0 < tau < math.inf else 0.0 if tau == 0 else math.nan
        except Exception as error:
            failure = error
        try:
            # Whatever happened here, the other ranks wait for this.
            r = agree(r, self._device)
        except Exception as error:
            r, failure = None, error
        if r is None:
            reason = failure or RuntimeError("another rank could not measure")
            self._reporter.cannot(self.step, reason, "was not measured and stands as the optimizer made it")
        elif tau == 0:
            self._skipped()
        else:
            scale = step_scale(self._settings.action, r, self._settings.target)
            if scale != 1:
                self._movement.rescale(scale)
            if scale == 0 and self._statistics:
                self._statistics.put_back()
            if self._trigger:
                self._trigger.reading(self.step, r, self._by_group(norms))
                self._trigger.budget.reading(time.perf_counter() - started)
            self._report(r, tau, scale, why, started)

    def _why(self, norms: list[float], tau: float, failure: Exception | None) -> str | None:
        """Why the step must be measured, on any rank; None if it need not."""
        if self._trigger is None:
            return "told"
        if failure is None and tau == 0:
            why = None
        elif failure is None and math.isfinite(tau):
            why = self._trigger.due(self.step, self._by_group(norms))
        else:
            why = "near"
        try:
            return why or "near" if agree_on_any(why is not None, self._device) else None
        except Exception:
            return why or "near"

    def _by_group(self, norms: list[float]) -> list[float]:
        each = iter(norms)
        return [math.hypot(*itertools.islice(each, size)) for size in self._movement.groups]

    def _unread(self, started: float) -> None:
        """The step stands as it is, unmeasured."""
        if self._trigger and self._previous_end is not None:
            self._trigger.budget.plain_step(started - self._previous_end)

    def _skipped(self) -> None:
        self._reporter.record(Event(self.step, "skipped", f"step {self.step}: the optimizer moved nothing"))

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

    def _report(self, r: float, tau: float, scale: float, why: str, started: float) -> None:
        # An optimizer that sets its own rate, such as Adafactor's relative steps, has None here.
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        lr = max((float(rate) for rate in rates if rate is not None), default=math.nan)
        self._cost.add(time.perf_counter() - started)
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
            cost_share=self._cost.share(),
            why=why,
        )
        self._reporter.record(reading)
        if reading.breach:
            self._reporter.tell(breach_event(reading))
        if why == "near" and (reading.cost_share or 0.0) > self._settings.budget:
            self._reporter.tell_once(self.step, _OVER.format(self._settings.budget))

    def _tell_what_is_judged(self) -> None:
        kind = {"forward": "forward mode", "difference": "a finite difference"}[self._probe.estimator.kind]
        self._reporter.tell_once(self.step, f"r is that of {self._probe.found}, measured by {kind}")

    def _fall_back(self) -> None:
        message = f"r is measured by a finite difference from step {self.step} on: {self._probe.estimator.reason}"
        self._reporter.record(Event(self.step, "fallback", message))
        self._reporter.warn_once("fallback", message)
