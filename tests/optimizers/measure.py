"""What a guard does to an optimizer: a plain run, one with a spike, and one that is bound at every other step."""

from collections import deque
from statistics import mean, median
from typing import NamedTuple

import torch
from optimizers.training import Outcome, train
from optimizers.zoo import Case

CALM, SPIKE, STEPS, BOUND = range(10, 20), range(20, 26), 44, 24


class Found(NamedTuple):
    """What was measured of a case."""

    free: Outcome
    spiked: Outcome
    bound: Outcome
    target: float
    """Of the spiked run."""
    tight: float
    """Of the bound one."""
    late: int

    @property
    def asked(self) -> float:
        """Times the usual that the first spiked step asks for."""
        return self._times_usual(self.spiked, SPIKE.start + self.late)

    @property
    def over(self) -> float:
        """Largest r that was made, over the target."""
        spiked = max(step.made for step in self.spiked.steps) / self.target
        return max(spiked, max(step.made for step in self.bound.steps) / self.tight)

    @property
    def rebound(self) -> float:
        """Times what the free run asks for, at the step after the spike."""
        return self._compared(SPIKE.stop + self.late)

    @property
    def lasts(self) -> int:
        """For how many steps after the spike it asks for more than three times what the free run does."""
        return sum(self._compared(step) > 3 for step in range(SPIKE.stop + self.late, STEPS))

    @property
    def losses(self) -> tuple[float, float]:
        """Mean of the last ten, free and spiked."""
        free, spiked = (mean(step.loss for step in run.steps[-10:]) for run in (self.free, self.spiked))
        return free, spiked

    def _compared(self, step: int) -> float:
        return self._times_usual(self.spiked, step) / (self._times_usual(self.free, step) or 1.0)

    def _times_usual(self, run: Outcome, step: int) -> float:
        return run.steps[step].asked / median(run.steps[i].asked for i in CALM)


def measure(case: Case, clamp_to: str = "limit") -> Found:
    """Train three times."""
    how = {"make": case.make, "advance": case.advance, "build": case.build}
    free = train(**how, steps=STEPS)
    calm = [free.steps[i].made for i in CALM]
    target, tight = min(1.5 * max(step.made for step in free.steps), 1.0), 0.5 * median(calm)
    spiked = train(**how, steps=STEPS, spike=SPIKE, target=target, clamp_to=clamp_to)
    bound = train(**how, steps=BOUND, target=tight, clamp_to=clamp_to)
    return Found(free, spiked, bound, target, tight, case.late)


def state_is_finite(optimizer: torch.optim.Optimizer) -> bool:
    numbers = [t for t in leaves(optimizer.state) if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return all(bool(t.isfinite().all()) for t in numbers)


def leaves(tree: object) -> list[object]:
    """Whatever is in dicts, lists and tuples, in their order; not what the dicts are keyed by."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple, deque)):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]
