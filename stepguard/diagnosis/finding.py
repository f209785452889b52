from __future__ import annotations

from typing import NamedTuple

from stepguard.diagnosis.case import Factor
from stepguard.records import Culprit


class Finding(NamedTuple):
    """What happened at some steps of a run, and why."""

    cause: str
    """One of :mod:`stepguard.diagnosis.causes`."""
    step: int
    """The first that was beyond the target, or at which the softmax had collapsed."""
    began: int
    """Where the cause set in."""
    worst: int
    r: float
    """Of the worst; not a number where it was not finite."""
    last: int
    beyond: int
    """How many were beyond."""
    target: float
    serious: bool
    """Whether it is more than a brief crossing of a run that goes well."""
    certain: bool
    """Whether it came from outside, as in no run that goes well; else it grew out of the run itself."""
    factors: tuple[Factor, ...]
    """What changed, of what r is made of."""
    evidence: tuple[str, ...]
    culprits: tuple[Culprit, ...]
    """Where the r of its steps came from, of those that were looked into; the worst first."""


class Diagnosis(NamedTuple):
    """What a run's records tell.

    Attributes:
        main: What spoiled the run; None if nothing did.
        findings: All that happened, in the order of steps.
    """

    main: Finding | None
    findings: tuple[Finding, ...]

    @property
    def cause(self) -> str:
        """Of what spoiled the run, or "healthy"."""
        return self.main.cause if self.main else "healthy"

    @property
    def step(self) -> int | None:
        """At which it came."""
        return self.main.step if self.main else None
