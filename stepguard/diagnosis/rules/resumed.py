from __future__ import annotations

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import WARM_RESTART
from stepguard.diagnosis.rules.found import Found, times

_SOON = 10
"""Readings after a process has begun in which that may be why."""


def resumed(case: Case) -> Found | None:
    """The training process began anew just before."""
    began = [place for place in case.starts if 0 <= case.at - place < _SOON]
    if not began or not case.grown("r") >= 2:
        return None
    step = int(case.track.step[began[-1]])
    said = f"a new process went on with the run at step {step}"
    more = (
        f"its updates are {times(case.grown('pull'))} as long per learning rate as before, for gradients "
        f"{times(case.grown('gradient'))} as large: the optimizer's moments may not have been restored"
    )
    return Found(WARM_RESTART, step, (said, more))
