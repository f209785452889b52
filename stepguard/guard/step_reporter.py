from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stepguard.guard.policy import Settings
from stepguard.guard.reporter import Reporter
from stepguard.records import Event, Reading, Recorder, breach_event

_OVER = (
    "steps that may be near the limit are all measured, which takes more than the {:.0%} of the time that measuring is "
    "given where they are not"
)
_HELD = (
    "step {}: the last {} steps all asked for more than the target, and were made as long as those before them. If "
    'that is how long they should be, clamp_to="limit" lets them come up to the target, and target= raises that'
)
_FORECAST = "step {}: r = {:.3g} will pass the target of {:g} at about step {}, if it goes on as it does"
_KINDS = {"forward": "forward mode", "difference": "a finite difference"}


class StepReporter(Reporter):
    """What a guard has to say of an optimizer step.

    Args:
        recorders: Where it is written.
        settings: The guard's.
        label: What every message begins with.
    """

    def __init__(self, recorders: Iterable[Recorder], settings: Settings, label: str = ""):
        super().__init__(recorders, settings.strict, label)
        self._settings = settings
        self._before: Reading | None = None
        self._waiting: list[tuple[str, str]] = []

    def attached(self, cautions: Iterable[tuple[str, bool]]) -> None:
        """A guard was attached to an optimizer that is not like others.

        Args:
            cautions: What to say of it, and whether it will not be measured.
        """
        for said, unmeasured in cautions:
            self._waiting.append(("unmeasured" if unmeasured else "caution", said))
            self.warn_once(said, said)

    def begins(self, step: int) -> None:
        """A step begins; before the first of a run that goes on it is not known which that is."""
        for kind, said in self._waiting:
            self.record(Event(step, kind, said))
        self._waiting = []

    def reading(self, reading: Reading, held: int, crossing: int | None) -> None:
        """A step was measured.

        Args:
            reading: What came of it.
            held: For how many steps in a row they have been held, where it is time to say so, or 0.
            crossing: The step at which r will come to its target, if that is news.
        """
        step, before = reading.step, self._before
        self._before = reading
        self.record(reading)
        if reading.breach or (reading.estimator == "prediction" and reading.scale != 1):
            self.tell(breach_event(reading))
        if held and reading.scale < 1 and self._settings.clamp_to == "calm":
            self.tell(Event(step, "held", _HELD.format(step, held)))
        if crossing is not None:
            message = _FORECAST.format(step, reading.r, reading.target, crossing)
            if reading.lr_safe is not None:
                message += f"; now it would at a learning rate of {reading.lr_safe:.3g}"
            self.tell(Event(step, "forecast", message))
        at_every_step = before is not None and before.step == step - 1 and before.why == reading.why == "near"
        if at_every_step and (reading.cost_share or 0.0) > self._settings.budget:
            self.tell_once(step, _OVER.format(self._settings.budget))

    def unmeasured(self, step: int, failure: Exception | None) -> None:
        """A step could not be measured; without a failure of our own, another rank's could not."""
        reason = failure or RuntimeError("another rank could not measure")
        self.cannot(step, reason, "was not measured and stands as the optimizer made it")

    def no_forecast(self, error: Exception) -> None:
        """The schedule cannot be looked ahead of.

        Raises:
            Exception: The error itself, if strict.
        """
        if self._settings.strict:
            raise error
        reason = f"{type(error).__name__}: {error}"
        self.warn_once("schedule", f"the schedule cannot be looked ahead of, so forecasts go without it ({reason})")

    def changed(self, step: int, message: str, data: dict[str, Any]) -> None:
        """A setting of the optimizer is another than at the reading before."""
        self.tell(Event(step, "changed", f"step {step}: {message}", data=data))

    def skipped(self, step: int) -> None:
        """The optimizer moved nothing."""
        self.record(Event(step, "skipped", f"step {step}: the optimizer moved nothing"))

    def judged(self, step: int, found: str, kind: str) -> None:
        """What r is taken of, and how."""
        self.tell_once(step, f"r is that of {found}, measured by {_KINDS[kind]}")

    def fell_back(self, step: int, reason: str) -> None:
        """Forward mode is not to be relied on."""
        message = f"r is measured by a finite difference from step {step} on: {reason}"
        self.record(Event(step, "fallback", message))
        self.warn_once("fallback", message)
