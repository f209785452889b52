from __future__ import annotations

from typing import NamedTuple

from stepguard.records.collapse import CollapseReading
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
    Metric("stepguard", "lr_safe", "lr_safe", "largest learning rate whose step would have kept to the target"),
    Metric("stepguard", "cost_share", "cost_share", "stepguard's share of the step's time"),
)
BREACH = Metric("stepguard", "r_breach", "r", "r of the steps beyond the target only, so that none is thinned out")


COLLAPSE_METRICS = (
    Metric("softmax", "collapse", "collapse", "share of samples whose softmax sum is exactly 1"),
    Metric("softmax", "zero_terms", "zero_terms", "share of samples whose loss is exactly 0"),
    Metric("softmax", "zero_gradients", "zero_gradients", "share whose gradient on the true logit is exactly 0"),
    Metric("softmax", "headroom_nats", "headroom_nats", "nats until collapse of one sample in a hundred"),
    Metric("softmax", "headroom_min", "headroom_min", "nats until collapse of the first sample"),
    Metric("softmax", "headroom_median", "headroom_median", "nats until collapse of half of the samples"),
    Metric("softmax", "headroom_trend", "trend", "nats of headroom per step, lately"),
    Metric("softmax", "steps_to_collapse", "steps_left", "steps until collapse starts if the trend goes on"),
    Metric("softmax", "nlm_alignment", "nlm_alignment", "cosine of -gradient with the weights"),
    Metric("softmax", "logit_norm", "logit_norm", "norm of a sample's logits, on average"),
    Metric("softmax", "weight_norm", "weight_norm", "norm of all weights together"),
    Metric("softmax", "curing", "curing", "1 where perpGrad was switched on"),
    Metric("softmax", "cost_share", "cost_share", "the monitor's share of the time that training takes"),
)


def metric_values(reading: Reading | CollapseReading, separator: str = "/") -> dict[str, float]:
    """The reading under its metric names.

    Example:
        >>> reading = Reading(3, r=2.0, tau=4.0, rho=2.0, spread=6.28, scale=0.5, lr=0.1, lr_applied=0.05, target=1.0)
        >>> metric_values(reading)["stepguard/lr_applied"]
        0.05
    """
    collapse = isinstance(reading, CollapseReading)
    values = {m.key(separator): getattr(reading, m.field) for m in (COLLAPSE_METRICS if collapse else METRICS)}
    if isinstance(reading, CollapseReading):
        layers = reading.layers or {}
        values |= {separator.join(("softmax", "nlm_alignment", layer)): value for layer, value in layers.items()}
    elif reading.breach:
        values |= breach_values(reading, separator)
    return {key: float(value) for key, value in values.items() if value is not None}


def breach_values(reading: Reading, separator: str = "/") -> dict[str, float]:
    """Only the metric that keeps every breach, for loggers that are due for nothing else."""
    return {BREACH.key(separator): reading.r}
