from __future__ import annotations

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import NEAR, SENSITIVITY
from stepguard.diagnosis.rules.found import Found, number, times

_STEADY = 1.5
"""Times as large r may be as lately, by the luck of the batch alone."""


def nothing_changed(case: Case) -> Found | None:
    """A step as those before it, which were near the target already."""
    lately = case.usual("r")
    if case.sudden or not (case.grown_since("r") <= 2 * _STEADY and lately >= 0.3 * case.now("target")):
        return None
    said = f"r was {number(lately)} in the steps before: the run works at its limit, and batches differ"
    return Found(NEAR, case.step, (said,), certain=False)


def sensitive(case: Case) -> Found | None:
    """The logits answer to a step of the same length by more: what is left."""
    grown = case.grown("sensitivity") if case.sudden else case.grown_since("sensitivity")
    step = case.step if case.sudden else int(case.track.step[case.since])
    said = f"a step of the same length moves the logits {times(grown)} as far as before"
    return Found(SENSITIVITY, step, (said,), certain=False)
