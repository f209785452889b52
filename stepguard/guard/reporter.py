from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable

from stepguard.records import CollapseReading, Event, Reading, Recorder

log = logging.getLogger("stepguard")
_MOST_SAID = 100


class Reporter:
    """Writes to every place that was asked for, and never lets one of them end a training run.

    Args:
        recorders: The places.
        strict: Raise what goes wrong, instead of warning once and going on.
        label: What every message begins with, where several speak.
    """

    def __init__(self, recorders: Iterable[Recorder], strict: bool, label: str = ""):
        self._recorders, self._strict, self._label = list(recorders), strict, label
        self._said: set[object] = set()

    def record(self, what: Reading | CollapseReading | Event) -> None:
        """Write it down."""
        if isinstance(what, Event):
            what = what._replace(message=self._label + what.message)
        for recorder in self._recorders:
            try:
                if isinstance(what, Event):
                    recorder.event(what)
                else:
                    recorder.reading(what)
            except Exception as error:
                if self._strict:
                    raise
                reason = f"{type(recorder).__name__} could not write ({error}); training goes on without it"
                self.warn_once(reason, reason)

    def tell(self, event: Event) -> None:
        """Write it down, and say it to who listens to our log."""
        log.info(self._label + event.message)
        self.record(event)

    def tell_once(self, step: int, message: str) -> None:
        """A ``found`` event, if it is news."""
        if message not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(message)
            self.tell(Event(step, "found", f"step {step}: {message}"))

    def cannot(self, step: int, error: Exception, what: str) -> None:
        """Fail open: say what went without a measurement, and why.

        Raises:
            Exception: The error itself, if strict.
        """
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        message = f"step {step} {what}. {reason}"
        self.record(Event(step, "unmeasured", message))
        if self._strict:
            raise error
        # Known by the line that raised it: the text may hold numbers that differ at every step.
        self.warn_once(_origin(error), f"{message} (said once; the log has every such step)")
        # The frames of a kept traceback would keep the batch alive.
        error.__traceback__ = None

    def warn_once(self, key: object, message: str) -> None:
        """Warn, if that was not said before."""
        if key not in self._said:
            self._said.add(key)
            try:
                warnings.warn(f"stepguard: {self._label}{message}", stacklevel=2)
            except UserWarning:  # the user made warnings errors, which must not end the run in the middle of a step
                log.warning("stepguard: %s%s", self._label, message)

    def close(self) -> None:
        """Close every place."""
        for recorder in self._recorders:
            try:
                recorder.close()
            except Exception as error:
                self.warn_once(recorder, f"{type(recorder).__name__} could not be closed ({error})")
        self._recorders = []


def _origin(error: Exception) -> object:
    trace = error.__traceback__
    if trace is None:
        return str(error)
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
