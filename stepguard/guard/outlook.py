from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stepguard.guard.trend import Trend


class SteppedEvery(NamedTuple):
    """A scheduler that is stepped after every so many optimizer steps."""

    scheduler: LRScheduler
    every: int


Schedule = LRScheduler | SteppedEvery | Callable[[int], float]
"""A scheduler that is stepped after every optimizer step, or less often, or a function from a step to its rate."""
HORIZON = 200
"""Steps that are looked ahead."""
_SPAN = 32
"""Steps that readings must lie apart for a trend to be seen in them; it is not carried on for longer than they do."""
_MOST = math.log(2)
"""Growth of its own beyond which a trend is not believed: most flatten out."""
_LEVEL = 0.75
"""Share of the readings that the forecast is above: a first crossing comes before the middle one."""
_EVERY = 5
"""Steps from one look to the next, where every step is measured."""
_QUIET = 50
"""Steps for which a crossing must have been out of sight before another one is news."""


class Outlook:
    """When r will come to its target, if it goes on as it does.

    r is linear in the learning rate, whose schedule is known in advance; what is left, r at a learning rate of 1, has
    a trend.

    Args:
        target: The limit on r.
        optimizer: Whose steps they are.
        schedule: What sets its learning rate; None stays where it is.

    Attributes:
        schedule: The same; to be set to None where it cannot be looked ahead of.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> outlook = Outlook(1.0, optimizer, lambda step: 0.002 * (step + 1))
        >>> for step in range(100):
        ...     crossing = outlook.reading(step, r=2.5 * 0.002 * (step + 1), lr=0.002 * (step + 1))
        ...     if crossing is not None:
        ...         print(step, crossing)
        5 199
    """

    def __init__(self, target: float, optimizer: Optimizer, schedule: Schedule | None = None):
        self._target, self._optimizer, self.schedule = target, optimizer, schedule
        self._trend = Trend()
        self._told: int | None = None
        self._looked = -_EVERY
        self._base, self._rates = 0, [0.0]

    def reading(self, step: int, r: float, lr: float) -> int | None:
        """Learn from a reading; the step of a crossing, where one has come in sight."""
        if not (0 < r < math.inf and 0 < lr < math.inf):
            return None
        self._trend.add(step, math.log(r / lr))
        if step < self._looked + _EVERY:
            return None
        self._looked = step
        crossing = self._crossing(step, lr) if r <= self._target else step
        news = crossing is not None and crossing > step and (self._told is None or step - self._told > _QUIET)
        if crossing is not None:
            self._told = step
        return crossing if news else None

    def rate(self, step: int) -> float:
        """The learning rate of a step that was looked ahead to."""
        return self._rates[min(max(step - self._base, 0), len(self._rates) - 1)]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to say the same."""
        return {"trend": self._trend.state_dict(), "told": self._told, "looked": self._looked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier one knew."""
        self._trend.load_state_dict(state["trend"])
        self._told, self._looked = state["told"], state["looked"]

    def _crossing(self, step: int, lr: float) -> int | None:
        line, span = self._trend.line(_LEVEL), self._trend.span
        if line is None:
            return None
        slope, height = line if span >= _SPAN else (0.0, line[1])
        self._look_ahead(step, lr)
        wanted = math.log(self._target)
        for ahead in range(1, HORIZON + 1):
            rate = self.rate(step + ahead)
            if rate > 0 and height + min(slope * min(ahead, span), _MOST) + math.log(rate) > wanted:
                return step + ahead
        return None

    def _look_ahead(self, step: int, lr: float) -> None:
        """Have the learning rates from this step on."""
        known = self._base <= step and step + HORIZON < self._base + len(self._rates)
        if known and math.isclose(self.rate(step), lr, rel_tol=1e-3):
            return
        self._base = step
        rates = list(itertools.islice(rates_from(self.schedule, self._optimizer, step), 3 * HORIZON // 2)) or [lr]
        self._rates = rates + rates[-1:] * (3 * HORIZON // 2 - len(rates))  # where it ends, it stays


def rates_from(schedule: Schedule | None, optimizer: Optimizer, step: int) -> Iterator[float]:
    """The learning rates of the step that is being made and those that follow, as far as they are known."""
    if isinstance(schedule, LRScheduler):
        schedule = SteppedEvery(schedule, 1)
    if isinstance(schedule, SteppedEvery):
        if not isinstance(schedule.scheduler, ReduceLROnPlateau):
            ahead = rates_ahead(schedule.scheduler, optimizer)
            rate = next(ahead)
            for now in itertools.count(step + 1):
                yield rate
                if now % schedule.every == 0:
                    try:
                        rate = next(ahead)
                    except StopIteration:
                        return
    elif schedule is not None:
        yield from map(float, map(schedule, itertools.count(step)))


def rates_ahead(scheduler: LRScheduler, optimizer: Optimizer) -> Iterator[float]:
    """The learning rates of this step and those that follow, the largest of the parameter groups; the scheduler stays.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        >>> list(itertools.islice(rates_ahead(scheduler, optimizer), 5)), optimizer.param_groups[0]["lr"]
        ([1.0, 1.0, 0.5, 0.5, 0.25], 1.0)
    """
    groups = [{**group, "params": [torch.zeros(1)]} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD([{"params": group["params"]} for group in groups], lr=1.0)
    for own, group in zip(stand_in.param_groups, copy.deepcopy(groups), strict=True):
        own.update(group)
    # What the scheduler has may be a trainer's wrapper around it, which is not for copying.
    twin = copy.deepcopy(scheduler, {id(optimizer): stand_in, id(scheduler.optimizer): stand_in})
    while True:
        yield max(float(group["lr"]) for group in stand_in.param_groups)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of an order of calls that is of no importance here
                twin.step()
        except Exception:  # such as a OneCycleLR that has come to its end
            return
