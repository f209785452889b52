from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.calm import Asked, Calm
from stepguard.guard.change import Change
from stepguard.guard.cost import Cost
from stepguard.guard.culprits import Culprits
from stepguard.guard.hooks import hook_step, owners
from stepguard.guard.hyperparameters import Hyperparameters
from stepguard.guard.interrupts import uninterrupted
from stepguard.guard.known_optimizers import cautions
from stepguard.guard.movement import moved_since
from stepguard.guard.outlook import Outlook, Schedule
from stepguard.guard.pacing import Pacing, Why
from stepguard.guard.policy import Settings, step_scale
from stepguard.guard.ranks import Ranks, rank
from stepguard.guard.reporter import log
from stepguard.guard.samples import NO_SAMPLES, over_samples
from stepguard.guard.step_reporter import StepReporter
from stepguard.probe import NOTHING_SEEN, Look, Manner, NoSoftmaxError, Probe, Screen, SeenStep, input_sizes, no_modes
from stepguard.records import Culprit, Reading, Recorder

_MOVED = (
    "The optimizer moved the parameters before it ran the closure, as SAM does, so the gradients are not those of "
    "where the step starts from"
)
_SCREENED = 0.9
"""Share of the target up to which a measurement will do that is right to a few percent."""


class Guard:
    """Stands between an optimizer and its model; made by :func:`attach` or by a trainer's callback.

    Attributes:
        last: The latest :class:`Reading`, or None before the first.
        step: Optimizer steps seen so far.
        culprit: Where the r of a breach came from, a :class:`stepguard.records.Culprit`, of the latest that was looked
            into, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        settings: Settings,
        recorders: Sequence[Recorder] = (),
        *,
        shield: Callable[[], AbstractContextManager[Any]] = nullcontext,
        schedule: Schedule | None = None,
        engine: nn.Module | None = None,
        label: str = "",
    ):
        self._settings, self._optimizer = settings, optimizer
        self._refuse_a_second()
        self.last: Reading | None = None
        self.step = 0
        self.culprit: Culprit | None = None
        self._ranks = Ranks(model, optimizer, engine)
        self._reporter = StepReporter(recorders, settings, label)
        self._change = Change(model, optimizer, self._ranks, settings.changes)
        self._pacing = Pacing(settings, optimizer, self._ranks)
        self._calm = Calm()
        self._hyperparameters = Hyperparameters(optimizer)
        self._culprits = Culprits(model, optimizer, rank())
        self._outlook = Outlook(settings.target, optimizer, schedule)
        self._due = self._ending = False
        self._failure: Exception | None = None
        self._seen = NOTHING_SEEN
        self._samples = NO_SAMPLES
        self._cost = Cost()
        self._previous_end: float | None = None
        self._probe = Probe(
            model,
            self._parameters,
            settings.logits,
            settings.forward,
            before_first=self._change.keep_statistics,
            how=Manner(shield, settings.batch_norm == "eval", since=lambda moment: moved_since(moment, model)),
            worth=lambda: self._pacing.worth_watching(self.step),
        )
        self._probe.keeps_logits = settings.screens
        self._hooks = hook_step(optimizer, self._begin, self._end)
        self._reporter.attached(cautions(optimizer, settings.changes))

    def detach(self) -> None:
        """Remove every hook and close the log; model and optimizer are as if never guarded."""
        for handle in self._hooks:
            handle.remove()
        self._change.return_gradients()
        self._probe.remove()
        self._reporter.begins(self.step)  # with an optimizer that steps from elsewhere none did
        self._reporter.close()
        self._hooks, self._due = (), False
        if not self._ending:
            self._change.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # copies and pickles of what holds a guard are unguarded, and have None in its place

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.detach()

    def skipped(self) -> None:
        """A step that was asked for and never came to the optimizer, as a GradScaler does with most: it counts as one.

        To be called by who knows of it; what was seen of it is forgotten.
        """
        self._probe.take()
        self._reporter.skipped(self.step)
        self.step += 1
        self._probe.resume()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly as it would have."""
        last = self.last and self.last.as_dict()
        pacing, probe = self._pacing.state_dict(), self._probe.state_dict()
        calm, outlook = self._calm.state_dict(), self._outlook.state_dict()
        state = {"version": 1, "step": self.step, "last": last, "probe": probe}
        return {**state, "pacing": pacing, "calm": calm, "outlook": outlook, "culprits": self._culprits.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier guard."""
        self.step = state["step"]
        self.last = state["last"] and Reading(**state["last"])
        self._pacing.load_state_dict(state.get("pacing"))
        self._probe.take()  # whether the step that begins is watched follows from what is known by now
        self._probe.resume()
        self._probe.load_state_dict(state["probe"])
        if "calm" in state:
            self._calm.load_state_dict(state["calm"])
            self._outlook.load_state_dict(state["outlook"])
        if "culprits" in state:
            self._culprits.load_state_dict(state["culprits"])

    def _refuse_a_second(self) -> None:
        mine = self._settings.action
        others = [owner._settings.action for owner in owners(self._optimizer) if isinstance(owner, Guard)]
        changing = [action for action in others if "observe" not in (mine, action)]
        if changing:
            raise ValueError(
                f"this optimizer is guarded already, with action={changing[0]!r}, by attach or by a callback; a second "
                f"guard with action={mine!r} would measure only what the first has left of a step. Detach that one, or "
                'give one of the two action="observe"'
            )

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    # One step: _begin (gradients are there, nothing has moved) -> the real update -> _end.

    def _begin(self, moved: bool) -> None:
        started = self._cost.start()
        # The batch is what was seen up to here: LBFGS calls its closure again at other parameters.
        self._seen = self._probe.take()
        self._reporter.begins(self.step)
        self._due = self._pacing.looks_at(self.step)
        self._change.return_gradients()
        if self._due:
            try:
                self._ranks.check()
            except ValueError as error:
                self._due = False  # and nobody must be asked anything
                self._reporter.unmeasured(self.step, error)
        if self._due:
            try:
                if moved:
                    raise ValueError(_MOVED)
                self._change.begin(self._seen.watched)
            except Exception as error:
                self._failure = error
        if self._seen.watched:
            self._pacing.watched(self._seen.seconds)
        self._cost.stop(started, self._seen.seconds)

    def _end(self) -> None:
        started = self._cost.start()
        try:
            self._ending = True
            self._probe.take()
            seen, self._seen = self._seen, NOTHING_SEEN
            failure, self._failure = self._failure, None
            withheld = self._change.withheld
            self._change.return_gradients()
            if self._due:
                with no_modes():  # what a user counts is not for what we do
                    self._decide(seen, withheld, failure, started)
        finally:
            if self._settings.forward:  # forwards are not seen, so the end of a step must do
                self._change.keep_statistics()
            self._due = self._ending = False
            if not self._hooks:  # detached meanwhile, by a hook or another thread
                self._change.forget()
            self.step += 1
            self._probe.resume()
            self._previous_end = time.perf_counter()
            self._cost.stop(started)

    def _decide(self, seen: SeenStep, withheld: bool, failure: Exception | None, started: float) -> None:
        norms: list[float] = []
        self._samples = NO_SAMPLES
        try:
            norms = self._change.end(known=failure is None)
        except Exception as error:
            failure = error
        tau = math.hypot(*norms) if failure is None and not withheld else math.nan
        groups = self._change.by_group(norms) if failure is None else None
        unwatched = not seen.watched and failure is None and 0 < tau < math.inf
        before = self._pacing.before
        why, unwatched = self._pacing.why(self.step, groups if not withheld else None, unwatched)
        asked = Asked(tau, self._pacing.rates, sum(norm > 0 for norm in norms), before)
        if why is None or (why == "old" and unwatched):  # the next one will be watched, and do as well
            with self._going_on():
                if tau == 0:
                    self._reporter.skipped(self.step)
                elif tau < math.inf:
                    self._calm.scale(0.0, self._settings.target, asked)
                if self._previous_end is not None:
                    self._pacing.unread(started - self._previous_end)
            return
        with uninterrupted(), self._going_on():
            if unwatched:
                self._make_harmless(seen, groups, asked, why, failure)
            else:
                self._act(seen, norms, groups, asked, why, failure, started)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """What can fail is caught where it does; this is for what nobody thought of."""
        try:
            yield
        except Exception as error:
            if self._settings.strict:
                raise
            self._reporter.cannot(self.step, error, "was not looked after to its end")

    def _act(
        self,
        seen: SeenStep,
        norms: list[float],
        groups: list[float] | None,
        asked: Asked,
        why: Why,
        failure: Exception | None,
        started: float,
    ) -> None:
        r, tau, spreads = None, asked.tau, None
        try:
            if failure is None and 0 < tau < math.inf:
                spreads = self._measure(seen, norms, why)
                r = self._samples.r
            elif failure is None:
                r = 0.0 if tau == 0 else math.nan
        except NoSoftmaxError as error:  # nothing here, but perhaps elsewhere
            r, failure = -math.inf, error
        except Exception as error:
            failure = error
        mine = r
        try:
            # Whatever happened here, the other ranks wait for this.
            r = self._ranks.agree(r)
        except Exception as error:
            r, failure = None, error
        if r is None or r < 0:
            self._reporter.unmeasured(self.step, failure)
        elif tau == 0:
            self._reporter.skipped(self.step)
        else:
            scale = self._scale(r, asked)
            seconds = time.perf_counter() - started
            culprit = self._explain(seen, norms, spreads, mine)
            self._change.rescale(scale)
            self._pacing.read(self.step, r, groups or [], seconds)
            self._report(seen, r, asked, scale, why, self._probe.method)
            if culprit:
                self.culprit = culprit
                self._reporter.tell(culprit.event())

    def _explain(self, seen: SeenStep, norms: list[float], spreads: Tensor | None, r: float | None) -> Culprit | None:
        """Where this rank's own r comes from, if that is beyond the target; before the parameters are put elsewhere."""
        if spreads is None or r is None or r <= self._settings.target or not self._culprits.wants(self.step, r):
            return None
        try:
            # With quantiles that is not the most sensitive one.
            index = int((spreads - math.pi * r).abs().argmin())
            found = self._probe.explain(seen, self._change.moves(norms), index)
            return found and self._culprits.named(self.step, found)
        except Exception as error:  # the step is measured, and that is what counts
            log.debug("stepguard: step %d is not explained (%s: %s)", self.step, type(error).__name__, error)
            error.__traceback__ = None  # its frames would keep the batch alive
            return None

    def _scale(self, r: float, asked: Asked) -> float:
        """What to multiply the update by, the same on all ranks, whose r this is."""
        scale = step_scale(self._settings.action, r, self._settings.target)
        if self._settings.action != "clamp" or scale == 0:
            return scale
        calm = self._back_to_calm(r, asked)
        try:
            return scale if scale == 1 else -(self._ranks.agree(-calm) or -scale)
        except Exception:  # nobody to agree with any more
            return calm

    def _back_to_calm(self, r: float, asked: Asked) -> float:
        target = self._settings.target
        scale = self._calm.scale(r, target, asked)
        return scale if self._settings.clamp_to == "calm" else min(target / r, 1.0) if r else 1.0

    def _make_harmless(
        self, seen: SeenStep, groups: list[float] | None, asked: Asked, why: Why, failure: Exception | None
    ) -> None:
        """Of a step that may be near the limit but came unwatched: shorten it to what need not be measured."""
        r, scale = self._pacing.unseen(self.step, groups) if groups else (math.nan, 1.0)
        if r > self._settings.target:
            scale = min(scale, self._back_to_calm(r, asked))
        try:
            cut = self._ranks.agree(None if failure else -scale)
        except Exception as error:
            cut, failure = None, error
        if cut is None:
            self._reporter.unmeasured(self.step, failure)
            return
        scale = 1.0 if self._settings.action == "observe" else -cut
        self._change.look_back()
        self._change.rescale(scale)
        self._report(seen, r, asked, scale, why, "prediction")

    def _measure(self, seen: SeenStep, norms: list[float], why: Why) -> Tensor:
        moved = self._change.moves(norms)
        before = self._probe.estimator.kind
        screens = self._settings.screens and why in ("told", "near")
        screen = Screen(self._pacing.expected(), _SCREENED * self._settings.target) if screens else None
        spreads = self._probe.spreads(seen, moved, screen)
        if self._probe.estimator.kind != before:
            self._reporter.fell_back(self.step, self._probe.estimator.reason)
        self._reporter.judged(self.step, self._probe.found, self._probe.estimator.kind)
        self._samples = over_samples(spreads, self._settings.quantile, self._probe.looked)
        self._probe.looked = Look()
        return spreads

    def _report(self, seen: SeenStep, r: float, asked: Asked, scale: float, why: Why, estimator: str) -> None:
        # An optimizer that sets its own rate, such as Adafactor's relative steps, has None here.
        rates = [group.get("lr") for group in self._optimizer.param_groups]
        lr = max((float(rate) for rate in rates if rate is not None), default=math.nan)
        self.last = Reading(
            step=self.step,
            r=r,
            tau=asked.tau,
            rho=asked.tau / r if r else math.inf,
            spread=math.pi * r,
            scale=scale,
            lr=lr,
            lr_applied=scale * lr,
            target=self._settings.target,
            estimator=estimator,
            cost_share=self._cost.share(),
            why=why,
            gradient_norm=self._change.gradient_norm,
            weight_norm=self._change.weight_norm(),
            r_median=self._samples.median,
            samples=self._samples.number,
            loss=self._samples.loss,
            loss_max=self._samples.loss_max,
            collapse=self._samples.collapse,
            **_of_inputs(seen),
            lr_before=asked.before[0] if asked.before else None,
            tau_before=asked.before[1] if asked.before else None,
            lrs=[None if rate is None else float(rate) for rate in rates] if len(rates) > 1 else None,
        )
        held = self._calm.held if self._calm.says_so else 0
        self._reporter.reading(self.last, held, self._crossing(r, lr) if estimator != "prediction" else None)
        for changed in self._hyperparameters.changed():
            self._reporter.changed(self.step, changed.message, changed._asdict())

    def _crossing(self, r: float, lr: float) -> int | None:
        try:
            return self._outlook.reading(self.step, r, lr)
        except Exception as error:  # the schedule is the user's own
            self._outlook.schedule = None
            self._reporter.no_forecast(error)
            return None


def _of_inputs(seen: SeenStep) -> dict[str, Any]:
    try:
        sizes = input_sizes(seen.inputs)
    except Exception as error:  # data of a kind of its own; the step is measured, and that is what counts
        log.debug("stepguard: inputs have no size (%s: %s)", type(error).__name__, error)
        return {}
    return {"inputs": sizes.number, "input_norm": sizes.median, "input_norm_max": sizes.largest} if sizes else {}
