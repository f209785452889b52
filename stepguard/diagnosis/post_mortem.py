from __future__ import annotations

from typing import NamedTuple

from stepguard.diagnosis.about import About, about
from stepguard.diagnosis.advice import Advice, advice
from stepguard.diagnosis.around import Measured, Zoom, measured_at, zoom
from stepguard.diagnosis.causes import COLLAPSE, WEIGHTS
from stepguard.diagnosis.cost import Cost, cost
from stepguard.diagnosis.diagnose import diagnose
from stepguard.diagnosis.done import Done, done
from stepguard.diagnosis.finding import Diagnosis
from stepguard.diagnosis.headroom import Headroom, headroom
from stepguard.diagnosis.softmax import Softmax, softmax
from stepguard.diagnosis.targets import OtherTarget, other_targets
from stepguard.diagnosis.track import track_of
from stepguard.diagnosis.verdict import verdict
from stepguard.records import Run


class PostMortem(NamedTuple):
    """All that there is to say of a run. What its records do not tell is None, nan or empty.

    Attributes:
        about: Which run it is.
        verdict: What happened, in a few sentences.
        diagnosis: What went wrong, where and why.
        time: When that was, in Unix time.
        logged_step: Where it lies on the axis of a trainer's own log.
        around: What was measured at the step where it did, beside what was usual.
        zoom: The steps around that one.
        done: What the guard did.
        targets: What other targets would have done.
        softmax: How near the softmax came to collapse.
        headroom: How far the learning rate could go.
        cost: What watching took.
        advice: What to do, and why.
    """

    about: About
    verdict: str
    diagnosis: Diagnosis
    time: float | None
    logged_step: int | None
    around: tuple[Measured, ...]
    zoom: Zoom | None
    done: Done | None
    targets: tuple[OtherTarget, ...]
    softmax: Softmax | None
    headroom: Headroom | None
    cost: Cost | None
    advice: tuple[Advice, ...]

    @property
    def cause(self) -> str:
        """Of what spoiled the run; "healthy" if nothing did, "unknown" if nothing was measured."""
        return self.diagnosis.cause if self.about.measured or self.softmax or self.diagnosis.main else "unknown"

    @property
    def spoiled(self) -> bool:
        """Whether something spoiled the run, and the guard did not keep it from that."""
        return self.diagnosis.main is not None and not self.kept

    @property
    def kept(self) -> bool:
        """Whether something would have, but every step was kept to the target."""
        main = self.diagnosis.main
        steps = main is not None and main.cause not in (COLLAPSE, WEIGHTS)  # which are not a matter of long steps
        return steps and self.done is not None and self.done.kept_to(self.about.target)


def post_mortem(run: Run) -> PostMortem:
    """What happened in a run, why, what was done about it, and what to do.

    Args:
        run: From :func:`stepguard.records.read_runs`.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.records import Reading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> for step in range(50):
        ...     lr = 10.0 if step == 40 else 0.1
        ...     run.readings.append(Reading(step, 2 * lr, lr, 0.5, 6.28 * lr, 1.0, lr, lr, 1.0, gradient_norm=1.0))
        >>> print(post_mortem(run).verdict)
        step 40: r = 20 of 1: learning rate jump. The learning rate went from 0.1 to 10 at once, 100 times as large.
        >>> print(post_mortem(run).advice[0].because)
        it went from 0.1 to 10; up to 0.5 would have kept to the target
    """
    found, of_it, track = diagnose(run), about(run), track_of(run)
    what_was_done, near, room = done(run, track), softmax(run), headroom(track, found)
    return PostMortem(
        about=of_it,
        verdict=verdict(found, of_it, what_was_done, near, track),
        diagnosis=found,
        time=run.times.get(found.main.step) if found.main else None,
        logged_step=run.logged_steps.get(found.main.step) if found.main else None,
        around=measured_at(track, found.main) if found.main else (),
        zoom=zoom(track, found.main) if found.main else None,
        done=what_was_done,
        targets=other_targets(track, of_it),
        softmax=near,
        headroom=room,
        cost=cost(run, of_it),
        advice=advice(found, of_it, track, what_was_done, near, room),
    )
