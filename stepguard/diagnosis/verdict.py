from __future__ import annotations

import math

from stepguard.diagnosis.about import About
from stepguard.diagnosis.around import place_of
from stepguard.diagnosis.causes import COLLAPSE
from stepguard.diagnosis.done import Done
from stepguard.diagnosis.finding import Diagnosis, Finding
from stepguard.diagnosis.rules.found import number
from stepguard.diagnosis.softmax import Softmax
from stepguard.diagnosis.track import Track

_OFTEN = 0.05
"""Share of the steps from which on it is not brief to be beyond."""


def verdict(diagnosis: Diagnosis, about: About, done: Done | None, softmax: Softmax | None, track: Track) -> str:
    """What happened, in a sentence or three."""
    if not diagnosis.main:
        return _healthy(diagnosis, about, done, softmax)
    said = _spoiled(diagnosis.main, track)
    if done and done.made and done.kept_to(about.target):
        said += f" The guard shortened {_steps(done.shortened + done.withheld)}; none was made beyond the target."
    return said


def _spoiled(main: Finding, track: Track) -> str:
    place = place_of(track, main.step)
    r = float(track.r[place]) if place is not None else math.nan
    if math.isnan(main.target) or not math.isfinite(r):
        said = f"step {main.step:,}: {main.cause}."
    else:
        said = f"step {main.step:,}: r = {_r(r, main.target)} of {main.target:g}: {main.cause}."
    if main.evidence:
        said += f" {sentence(main.evidence[0])}"
    if main.cause != COLLAPSE and main.worst != main.step and main.r > r:
        said += f" At step {main.worst:,} r was {number(main.r)}."
    return said


def _healthy(diagnosis: Diagnosis, about: About, done: Done | None, softmax: Softmax | None) -> str:
    said = []
    if done and done.asked:
        of = "" if math.isnan(about.target) else f" of {about.target:g}"
        said.append(f"r at most {_r(done.asked.r, about.target)}{of}")
    if softmax:
        said.append(
            f"at least {number(softmax.lowest)} nats of softmax headroom"
            if softmax.lowest > 0
            else f"the softmax collapsed for at most {100 * softmax.collapsed_most:.3g}% of the samples"
        )
    if not said:
        return f"nothing was measured in {_steps(about.steps)}, so there is nothing to tell." if about.steps else _EMPTY
    crossed = sum(finding.beyond for finding in diagnosis.findings if not math.isnan(finding.target))
    often = crossed > _OFTEN * about.steps
    brief = f" It was beyond its target {'' if often else 'briefly, '}at {_steps(crossed)}." if crossed else ""
    return f"healthy: {_steps(about.steps)}, {', '.join(said)}.{brief}"


_EMPTY = "there are no steps in its records yet."


def sentence(text: str) -> str:
    """With a capital and a full stop.

    Example:
        >>> sentence("the loss rose")
        'The loss rose.'
    """
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _steps(count: int) -> str:
    return f"{count:,} step{'s' * (count != 1)}"


def _r(value: float, target: float) -> str:
    # What is barely beyond shall not read as if it were at its target.
    return number(value) if number(value) != number(target) else f"{value:.5g}"
