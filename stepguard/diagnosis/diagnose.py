from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stepguard.diagnosis.about import About, about
from stepguard.diagnosis.bursts import bursts
from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import COLLAPSE, NEAR, SENSITIVITY, TOO_HIGH
from stepguard.diagnosis.collapsed import Collapsed, collapsed
from stepguard.diagnosis.episodes import APART, Episode, episodes_of
from stepguard.diagnosis.finding import Diagnosis, Finding
from stepguard.diagnosis.rules import RULES, Found
from stepguard.diagnosis.rules.weights import changed_from_outside
from stepguard.diagnosis.track import Track, track_of
from stepguard.records import Culprit, Run

_MANY = 500
"""Stretches of steps, at the beginning and of the worst, that are looked into."""
_SERIOUS = 2.0
"""Times its target from which on a step is more than a brief crossing."""
_AT_THE_START = 10
"""Steps of a run that are often long, without a warm-up."""
_SERIOUS_THERE = 10.0
_LASTS = 20
"""Steps beyond the target that are more than a brief crossing, however little they are beyond."""


def diagnose(run: Run) -> Diagnosis:
    """What happened in a run, when it began, and why.

    Each stretch of steps beyond the target is compared with what was usual before it: r is a product, so what grew
    is read off its factors, and what the batch, the weights and the optimizer were tells why that did. A run that goes
    well may cross its target briefly; that is told, and is no alarm.

    Args:
        run: From :func:`stepguard.records.read_runs`.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.records import Reading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> for step in range(50):
        ...     lr = 10.0 if step == 40 else 0.1
        ...     reading = Reading(step, 2 * lr, lr, 0.5, 6.28 * lr, 1.0, lr, lr, target=1.0, gradient_norm=1.0)
        ...     run.readings.append(reading)
        >>> found = diagnose(run)
        >>> found.cause, found.step, found.main.evidence
        ('learning rate jump', 40, ('the learning rate went from 0.1 to 10 at once, 100 times as large',))
    """
    track = track_of(run)
    facts = about(run)
    culprits = [culprit for event in run.events if (culprit := Culprit.of(event))]
    findings = [_finding(track, episode, facts, culprits) for episode in _worth_a_look(track)]
    findings += [_of_burst(track, place, facts) for place in bursts(track)]
    late = collapsed(run)
    if late:
        findings.append(_of_collapse(late, track, facts))
    findings.sort(key=lambda finding: finding.step)
    return Diagnosis(_main(findings), tuple(findings))


def _worth_a_look(track: Track) -> list[Episode]:
    """All of them, or of very many the first and the worst."""
    episodes = episodes_of(track)
    if len(episodes) <= 2 * _MANY:
        return episodes
    size = np.nan_to_num(track.r[[episode.worst for episode in episodes]], nan=np.inf)
    kept = {*range(_MANY), *np.argsort(-size, kind="stable")[:_MANY].tolist()}
    return [episodes[place] for place in sorted(kept)]


def _case(track: Track, at: int, run: About) -> Case:
    step = track.step[at]
    starts = tuple(int(place) for place in np.searchsorted(track.step, run.resumed) if 0 < place < len(track))
    return Case(track, at, starts, run.hyper, tuple(change for change in run.changed if change.step <= step))


def _finding(track: Track, episode: Episode, facts: About, culprits: Sequence[Culprit]) -> Finding:
    case = _case(track, episode.first, facts)
    found = _why(case)
    first, last = int(track.step[episode.first]), int(track.step[episode.last])
    within = (culprit for culprit in culprits if first <= culprit.step <= last)
    return Finding(
        cause=found.cause,
        step=first,
        began=found.began,
        worst=int(track.step[episode.worst]),
        r=float(track.r[episode.worst]),
        last=last,
        beyond=episode.beyond,
        target=float(track.target[episode.first]),
        serious=_is_serious(track, episode, found),
        certain=found.certain,
        factors=case.factors_since(found.began),
        evidence=found.evidence,
        culprits=tuple(sorted(within, key=lambda culprit: -culprit.r)),
    )


def _of_burst(track: Track, place: int, facts: About) -> Finding:
    case = _case(track, place, facts)
    found = _why(case)
    return Finding(
        cause=found.cause,
        step=case.step,
        began=found.began,
        worst=case.step,
        r=case.now("r"),
        last=case.step,
        beyond=0,
        target=case.now("target"),
        serious=found.certain,
        certain=found.certain,
        factors=case.factors_since(found.began),
        evidence=(*found.evidence, f"r stayed within its target of {case.now('target'):g}"),
        culprits=(),
    )


def _why(case: Case) -> Found:
    return next(found for found in (rule(case) for rule in RULES) if found)


def _is_serious(track: Track, episode: Episode, found: Found) -> bool:
    times = float(track.r[episode.worst] / track.target[episode.worst])
    if not math.isfinite(times):
        return True
    if found.cause in (NEAR, TOO_HIGH) or track.step[episode.first] < _AT_THE_START:
        return times >= _SERIOUS_THERE
    if found.cause == SENSITIVITY:
        return times >= 1.5 * _SERIOUS
    return found.certain or times >= _SERIOUS or episode.beyond >= _LASTS


def _of_collapse(late: Collapsed, track: Track, facts: About) -> Finding:
    # What else changed the weights has scaled the logits as well.
    place = int(np.searchsorted(track.step, late.step, "right"))
    cases = [_case(track, at, facts) for at in (place - 1, place) if 0 < at < len(track)]
    why = next((found for found in map(changed_from_outside, cases) if found), None)
    return Finding(
        cause=why.cause if why else COLLAPSE,
        step=late.step,
        began=why.began if why else late.began,
        worst=late.worst,
        r=math.nan,
        last=late.last,
        beyond=late.beyond,
        target=math.nan,
        serious=late.serious,
        certain=late.certain or why is not None,
        factors=(),
        evidence=(why.evidence if why else ()) + late.evidence,
        culprits=(),
    )


def _main(findings: list[Finding]) -> Finding | None:
    serious = [f for f in findings if f.serious]
    later = [f for f in serious if f.step >= _AT_THE_START and f.cause != NEAR] or serious
    first = next(iter(later), None)
    if first is None or first.certain:
        return first
    # What only grew out of the run itself may be over when something else comes.
    return next((f for f in later if f.certain and _after_a_calm(f, findings)), first)


def _after_a_calm(finding: Finding, findings: list[Finding]) -> bool:
    return all(finding.step - f.last > APART for f in findings if f.step < finding.step and f.cause != COLLAPSE)
