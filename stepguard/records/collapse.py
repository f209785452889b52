from __future__ import annotations

from typing import Any, NamedTuple


class CollapseReading(NamedTuple):
    """How near the softmax of a loss was to collapse at one optimizer step. Plain values, JSON-able.

    Shares lie between 0 and 1; headroom is in nats, negative beyond collapse; None is what could not be told.

    Example:
        >>> CollapseReading(step=3, samples=64, collapse=0.0, headroom_nats=2.5, headroom_min=2.0, headroom_median=9.0,
        ...                 dtype="float32", classes=10, trend=-0.5).collapsed
        False
    """

    step: int
    """Optimizer steps before this one, from 0."""
    samples: int
    """Samples, or tokens, that the loss counted."""
    collapse: float
    """Share of them for which the sum of the softmax is exactly 1."""
    headroom_nats: float
    """Nats until that is so for one sample in a hundred: the quantile that the monitor goes by."""
    headroom_min: float
    """Nats until it is so for the first."""
    headroom_median: float
    """Nats until it is so for half of them."""
    dtype: str
    """In which the loss took its softmax."""
    classes: int
    zero_terms: float | None = None
    """Share whose loss is exactly 0."""
    zero_gradients: float | None = None
    """Share whose gradient on the true logit is exactly 0."""
    trend: float | None = None
    """Nats of headroom per step, lately; negative towards collapse."""
    forecast: float | None = None
    """Step at which collapse starts if that goes on."""
    nlm_alignment: float | None = None
    """Cosine of -gradient with the weights: near 1 the model scales its logits instead of learning."""
    logit_norm: float | None = None
    """Euclidean norm of a sample's logits, on average."""
    weight_norm: float | None = None
    """Euclidean norm of all weights together."""
    curing: bool = False
    """Whether perpGrad was switched on for this step."""
    every: int = 1
    """Steps from one reading to the next."""
    cost_share: float | None = None
    """The monitor's share of the time that training takes, everything between two readings included."""
    layers: dict[str, float] | None = None
    """Alignment of each parameter, if asked for."""

    @property
    def collapsed(self) -> bool:
        """Whether the softmax has collapsed for more than the quantile of its samples."""
        return self.headroom_nats <= 0

    @property
    def steps_left(self) -> float | None:
        """Steps until collapse starts if the trend goes on."""
        return None if self.forecast is None else self.forecast - self.step

    def as_dict(self) -> dict[str, Any]:
        """Field names to values, for JSON."""
        return self._asdict()
