from __future__ import annotations

from typing import Any, NamedTuple

from stepguard.records.reading import Event

_SAID = 3
_WORTH_SAYING = 0.01
"""Share of the spread from which on a remainder is mentioned."""


class Culprit(NamedTuple):
    """Where the r of a step beyond its target comes from. Plain values, JSON-able.

    Slopes are linear in the update, so the spread of the most sensitive sample is a sum over parameters: each
    adds what its own part of the update does to the difference of the two classes, in nats. Those that add less than
    nothing hold the two together. ``sum(parameters.values()) + others + remainder == spread``, and likewise
    ``groups`` and ``layers`` with the remainder.

    Example:
        >>> culprit = Culprit(step=3, r=2.0, spread=6.28, sample=5, position=[0, 5], softmax="cross_entropy of GPT",
        ...                   rising=1, falling=0, parameters={"head.weight": 6.0, "embed.weight": 0.28})
        >>> print(culprit.message)
        step 3: r = 2 comes from sample 5 (0, 5): class 1 rises over class 0 by 6.28 nats, 96% of it by head.weight, ...
    """

    step: int
    r: float
    """Of this sample; the reading's, unless another process has one that is larger."""
    spread: float
    """How far apart the step drives the two classes, in nats (pi * r)."""
    sample: int
    """Its place in the batch, or micro-batch, all samples in a row, also those that the loss ignores."""
    position: list[int]
    """The same in the shape of the logits: ``[sample]``, or ``[sequence, token]``."""
    softmax: str
    """Of what: the function that took the softmax, and the module."""
    rising: int
    """The class whose logit rises fastest."""
    falling: int
    """The class whose logit falls fastest. Of a binary decision class 1 is its logit, class 0 stays at zero."""
    label: int | None = None
    """The class that the sample should be of, where the loss names one."""
    batch: int = 0
    """Which of the micro-batches of an accumulated step, from 0."""
    batches: int = 1
    """How many of them there were."""
    rank: int | None = None
    """Which process has it, where several train."""
    parameters: dict[str, float] | None = None
    """What the update of each parameter adds, largest first; the twenty largest."""
    others: float = 0.0
    """What all other parameters add."""
    groups: dict[str, float] | None = None
    """What each parameter group of the optimizer adds, by its name or its index."""
    layers: dict[str, float] | None = None
    """What each layer adds, largest first: a block of a numbered stack, or else a module with parameters of its own."""
    remainder: float = 0.0
    """What parameters do not account for: rounding, and where autograd is told of something else than the forward
    does, as by detach."""

    @property
    def message(self) -> str:
        """All this in a sentence."""
        place = f" {tuple(self.position)}" if len(self.position) > 1 else ""
        where = f" of micro-batch {self.batch + 1} of {self.batches}" if self.batches > 1 else ""
        where += f" on rank {self.rank}" if self.rank is not None else ""
        rising, falling = (f"class {k}{', its label,' if k == self.label else ''}" for k in (self.rising, self.falling))
        parts = [f"{v / self.spread:.0%} of it by {name}" for name, v in list((self.parameters or {}).items())[:_SAID]]
        parts = [parts[0], *(p.replace(" of it", "") for p in parts[1:])] if parts else []
        if abs(self.remainder) > _WORTH_SAYING * self.spread:
            parts.append(f"{self.remainder / self.spread:.0%} left over, where autograd is told of something else")
        return (
            f"step {self.step}: r = {self.r:.3g} comes from sample {self.sample}{place}{where}: {rising} rises over "
            f"{falling} by {self.spread:.3g} nats" + "".join(f", {part}" for part in parts)
        )

    @property
    def brief(self) -> str:
        """The same in half a line."""
        return f"sample {self.sample}, class {self.rising} over {self.falling}"

    def as_dict(self) -> dict[str, Any]:
        """Field names to values, for JSON."""
        return self._asdict()

    @classmethod
    def of(cls, event: Event) -> Culprit | None:
        """What an event tells, also one that was read from a file; None if it is of another kind."""
        data = event.data if event.kind == "culprit" and event.data else {}
        known = {name: data[name] for name in cls._fields if name in data}
        return cls(**known) if known.keys() >= set(cls._fields) - cls._field_defaults.keys() else None

    def event(self) -> Event:
        """What to tell of it."""
        return Event(self.step, "culprit", self.message, data=self.as_dict())
