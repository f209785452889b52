from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.geometry.perp_grad import nlm_alignment, nlm_alignments, perp_grad_
from stepguard.guard.alarm import Alarm
from stepguard.guard.budget import Budget
from stepguard.guard.collapse_settings import CollapseSettings
from stepguard.guard.hooks import hook_step
from stepguard.guard.interrupts import uninterrupted
from stepguard.guard.ranks import Ranks, together
from stepguard.guard.reporter import Reporter
from stepguard.guard.trend import Trend
from stepguard.probe.loss_watch import LossWatch, SeenLosses
from stepguard.probe.reasons import NO_LOSS, NO_SAMPLE
from stepguard.probe.summary import Summary, summary
from stepguard.records import CollapseReading, Event, Recorder

_QUANTILE = 0.01
_SHARE = 0.02
"""Of the time that training takes, what readings may take."""
_FIRST = 32
"""Steps from one reading to the next, until it is known what they cost."""


class CollapseMonitor:
    """Watches the softmax of a loss; made by :func:`monitor_collapse` or by a trainer's callback.

    Attributes:
        last: The latest :class:`CollapseReading`, or None before the first.
        step: Optimizer steps seen so far.
        curing: Whether gradients go through perpGrad at present.
        stop_reason: Why training should stop, with ``on_warning="stop"``; else None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: CollapseSettings,
        recorders: Sequence[Recorder] = (),
        *,
        engine: nn.Module | None = None,
        label: str = "",
    ):
        self.last: CollapseReading | None = None
        self.step = 0
        self.curing = False
        self.stop_reason: str | None = None
        self._model, self._optimizer, self._settings = model, optimizer, settings
        self._ranks = Ranks(model, optimizer, engine)
        self._reporter = Reporter(recorders, settings.strict, label)
        self._alarm = Alarm(settings.headroom, settings.horizon)
        self._trend = Trend()
        self._budget = Budget(_SHARE, _FIRST, None if settings.cadence == "auto" else settings.cadence)
        self._next = 0
        self._due = False
        self._spent = 0.0
        self._previous_end: float | None = None
        self._watch = LossWatch(model, self._parameters)
        self._hooks = hook_step(optimizer, self._begin, self._end)
        self._watch.arm()

    def detach(self) -> None:
        """Remove every hook and close the log; model and optimizer are as if never watched."""
        for handle in self._hooks:
            handle.remove()
        self._hooks = ()
        self._watch.remove()
        self._reporter.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # as a guard's

    def __enter__(self) -> CollapseMonitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.detach()

    def skipped(self) -> None:
        """As :meth:`Guard.skipped`."""
        self._watch.take()
        self.step += 1
        if self.step >= self._next:
            self._watch.arm()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as it would have."""
        return {
            "version": 1,
            "step": self.step,
            "next": self._next,
            "last": self.last and self.last.as_dict(),
            "level": self._alarm.level,
            "curing": self.curing,
            "stop_reason": self.stop_reason,
            "trend": self._trend.state_dict(),
            "budget": self._budget.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier monitor."""
        self.step, self._next = state["step"], state["next"]
        self.last = state["last"] and CollapseReading(**state["last"])
        self._alarm.level, self.curing, self.stop_reason = state["level"], state["curing"], state["stop_reason"]
        self._trend.load_state_dict(state["trend"])
        self._budget.load_state_dict(state["budget"])
        self._watch.take()
        if self.step >= self._next:
            self._watch.arm()

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    # One step: _begin (gradients are there, nothing has moved) -> the real update -> _end.

    def _begin(self, moved: bool) -> None:
        started = time.perf_counter()
        self._due = self.step >= self._next
        if not (self._due or self.curing):
            return
        with uninterrupted():
            if self._due:
                armed, seen = self._watch.armed, self._watch.take()
                self._spent = seen.seconds
                try:
                    self._read(seen, armed)
                except Exception as error:
                    self._reporter.cannot(self.step, error, "was not looked at for softmax collapse")
                self._spent += time.perf_counter() - started
            if self.curing:
                self._cure()

    def _end(self) -> None:
        now = time.perf_counter()
        if self._previous_end is not None:
            self._budget.plain_step(now - self._previous_end - self._spent)
        if self._due:
            self._budget.reading(self._spent)
            self._next = self.step + self._budget.every
        self._due, self._spent = False, 0.0
        self.step += 1
        if self.step >= self._next:
            with uninterrupted():
                self._watch.arm()
        self._previous_end = now

    def _read(self, seen: SeenLosses, armed: bool) -> None:
        self._ranks.check()
        mine, failure = None, seen.error
        try:
            mine = None if failure else summary(seen.softmaxes, _QUANTILE)
        except Exception as error:
            failure = error
        # Whatever happened here, the other ranks wait for this.
        found, self._budget.every = together(mine, self._budget.every)
        if found is None:
            if not armed:
                return  # the step before was interrupted; a later one will do as well
            if seen.stablemax and not failure:
                self._reporter.tell_once(self.step, "the loss takes a StableMax, which does not collapse")
                return
            if not failure and all(p.grad is None for p in self._parameters()):
                return  # a step that no backward pass came before, as weight averaging makes one to end with
            raise failure or ValueError(NO_SAMPLE if seen.softmaxes else NO_LOSS)
        self.last = reading = self._reading(found)
        self._reporter.record(reading)
        for event in self._alarm.judge(reading):
            self._reporter.tell(event)
            if event.kind == "warning":
                self._reporter.warn_once("warning", event.message)
            self._act(event)

    def _reading(self, found: Summary) -> CollapseReading:
        self._trend.add(self.step, found.headroom)
        with_gradient = [p for p in self._parameters() if p.grad is not None and not p.grad.is_sparse]
        layers = None
        if self._settings.per_layer:
            names: dict[Tensor, str] = {p: name for name, p in self._model.named_parameters()}
            cosines = nlm_alignments(with_gradient).tolist()
            layers = {
                names[p]: c for p, c in zip(with_gradient, cosines, strict=True) if p in names and not math.isnan(c)
            }
        return CollapseReading(
            step=self.step,
            samples=found.samples,
            collapse=found.collapse,
            headroom_nats=found.headroom,
            headroom_min=found.headroom_min,
            headroom_median=found.headroom_median,
            dtype=found.dtype,
            classes=found.classes,
            zero_terms=found.zero_terms,
            zero_gradients=found.zero_gradients,
            trend=self._trend.slope,
            forecast=self._trend.crosses_zero_at,
            nlm_alignment=_known(nlm_alignment(with_gradient).item()),
            logit_norm=found.logit_norm,
            weight_norm=_norm(self._parameters()),
            curing=self.curing,
            every=self._budget.every,
            cost_share=self._budget.share,
            layers=layers,
        )

    def _act(self, event: Event) -> None:
        wanted = self._settings.on_warning
        if event.kind == "warning" and wanted == "stop":
            self.stop_reason = event.message
            self._reporter.tell(Event(self.step, "stop", f"step {self.step}: training is asked to stop", self.last))
        if wanted == "perp_grad" and event.kind in ("warning", "recovery"):
            self.curing = event.kind == "warning"
            message = f"step {self.step}: perpGrad is switched {'on' if self.curing else 'off'}"
            self._reporter.tell(Event(self.step, "cure_on" if self.curing else "cure_off", message, self.last))

    def _cure(self) -> None:
        try:
            perp_grad_([p for p in self._parameters() if p.grad is not None and not p.grad.is_sparse])
        except Exception as error:
            self._reporter.cannot(self.step, error, "went without perpGrad")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _norm(tensors: list[Tensor]) -> float:
    norm = nn.utils.get_total_norm(t.detach() for t in tensors)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
