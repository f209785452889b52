from __future__ import annotations

from typing import NamedTuple

from stepguard.diagnosis.about import About
from stepguard.diagnosis.done import Done
from stepguard.diagnosis.finding import Diagnosis
from stepguard.diagnosis.headroom import Headroom
from stepguard.diagnosis.known import of_the_finding, of_the_guard, of_the_softmax
from stepguard.diagnosis.remedies import ANY, REMEDIES
from stepguard.diagnosis.rules.found import number
from stepguard.diagnosis.softmax import Softmax
from stepguard.diagnosis.track import Track

_MOST = 4
_ROOM = 2.0
"""Times as large as it is a learning rate must be able to be for that to be worth a word."""


class Advice(NamedTuple):
    """Something to do, and why."""

    do: str
    because: str


def advice(
    diagnosis: Diagnosis,
    about: About,
    track: Track,
    done: Done | None,
    softmax: Softmax | None,
    headroom: Headroom | None,
) -> tuple[Advice, ...]:
    """What to do about what happened, for reasons with numbers; at most four."""
    known = of_the_guard(about, done) | (of_the_softmax(softmax) if softmax else {})
    if diagnosis.main:
        known |= of_the_finding(diagnosis.main, about, track)
        if diagnosis.main.certain:
            known.pop("held", None)  # for good reason
    elif headroom and (room := min(phase.times for phase in headroom.phases)) >= _ROOM:
        known["room"] = number(room)
    found: dict[str, Advice] = {}
    for remedy in (*REMEDIES.get(diagnosis.cause, ()), *ANY):
        if remedy.action in (None, about.action):
            try:
                do, because = remedy.do.format_map(known), remedy.because.format_map(known)
            except KeyError:  # one of its numbers is not known, or says nothing here
                continue
            found.setdefault(do, Advice(do, because))
    return tuple(found.values())[:_MOST]
