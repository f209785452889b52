from __future__ import annotations

from typing import NamedTuple

from stepguard.records.reading import Reading


class Metric(NamedTuple):
    """A logged scalar: its name in two parts, the reading's field that fills it, and what it means."""

    group: str
    name: str
    field: str
    meaning: str

    def key(self, separator: str = "/") -> str:
        """The full name, as in ``stepguard/r``."""
        return f"{self.group}{separator}{self.name}"


METRICS = (
    Metric("stepguard", "r", "r", "normalized step ratio tau / rho_a of the step asked for; beyond 1 is unsafe"),
    Metric("stepguard", "tau", "tau", "length of the update asked for"),
    Metric("stepguard", "rho", "rho", "radius pi / Delta_a along the update"),
    Metric("stepguard", "spread", "spread", "largest spread of the logits' change by the whole update, nats"),
    Metric("stepguard", "scale", "scale", "factor applied to the update"),
    Metric("stepguard", "lr_applied", "lr_applied", "learning rate really applied, scale * lr"),
    Metric("stepguard", "cost_share", "cost_share", "stepguard's share of the step's time"),
)
BREACH = Metric("stepguard", "r_breach", "r", "r of the steps beyond the target only, so that none is thinned out")


def metric_values(reading: Reading, separator: str = "/") -> dict[str, float]:
    """The reading under its metric names.

    Example:
        >>> reading = Reading(3, r=2.0, tau=4.0, rho=2.0, spread=6.28, scale=0.5, lr=0.1, lr_applied=0.05, target=1.0)
        >>> metric_values(reading)["stepguard/lr_applied"]
        0.05
    """
    values = {m.key(separator): getattr(reading, m.field) for m in METRICS}
    if reading.breach:
        values |= breach_values(reading, separator)
    return {key: value for key, value in values.items() if value is not None}


def breach_values(reading: Reading, separator: str = "/") -> dict[str, float]:
    """Only the metric that keeps every breach, for loggers that are due for nothing else."""
    return {BREACH.key(separator): reading.r}
