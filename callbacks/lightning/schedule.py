from __future__ import annotations

import math

from lightning.pytorch import Trainer
from torch.optim.lr_scheduler import LRScheduler

from stepguard.guard import Schedule, SteppedEvery


def schedule_of(trainer: Trainer) -> Schedule | None:
    """What sets the learning rate of a trainer's one optimizer, optimizer step by optimizer step; None if unknown.

    In manual optimization it is unknown: the module itself steps its schedulers, whenever it likes.
    """
    if len(trainer.lr_scheduler_configs) != 1 or not trainer.lightning_module.automatic_optimization:
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
    return SteppedEvery(config.scheduler, every)
