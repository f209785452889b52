from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LRScheduler

from stepguard.guard import Schedule, rates_ahead


def schedule_of(trainer: Trainer) -> Schedule | None:
    """What sets the learning rate of a trainer's one optimizer, optimizer step by optimizer step; None if unknown."""
    if len(trainer.lr_scheduler_configs) != 1:
        return None
    (config,) = trainer.lr_scheduler_configs
    if not isinstance(config.scheduler, LRScheduler):
        return None
    every = config.frequency
    if config.interval == "epoch":
        batches = trainer.num_training_batches / trainer.accumulate_grad_batches
        if not math.isfinite(batches):
            return None
        every *= max(math.ceil(batches), 1)
    return config.scheduler if every == 1 else _stepped_now_and_then(config.scheduler, every)


def _stepped_now_and_then(scheduler: LRScheduler, every: int) -> Callable[[int], float]:
    known: list[float] = []
    start = 0

    def rate(step: int) -> float:
        nonlocal start
        period = step // every
        if not known or not 0 <= period - start < len(known):
            start = period
            known[:] = itertools.islice(rates_ahead(scheduler, scheduler.optimizer), 512)
        return known[period - start]

    return rate
