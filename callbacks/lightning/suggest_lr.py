from __future__ import annotations

import itertools
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from stepguard.callbacks.lightning.names import Callback, misconfiguration
from stepguard.callbacks.lightning.quiet import not_logging
from stepguard.guard import Suggestion, suggest_lr

_PEAKS = ("max_lr", "initial_lr", "lr")


class SuggestLR(Callback):
    """Says before training how large the learning rate may be, and sets it if asked to.

    See :func:`stepguard.suggest_lr`. A few batches of the training data are run through ``training_step``, and no trace
    is left of that. A run that goes on from a checkpoint is left alone.

    Args:
        update: Whether to set the suggested rate: as the largest one that a schedule comes to, whose shape stays.
        target: Limit on r that the largest safe rate keeps to.
        batches: How many batches to take.

    Attributes:
        suggestion: What was found, once training has begun.

    Raises:
        MisconfigurationException: At the start, if there is not exactly one optimizer, or r cannot be measured.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SuggestLR(update=True)], logger=False, accelerator="cpu")
    """

    def __init__(self, update: bool = False, target: float = 1.0, batches: int = 4):
        self.suggestion: Suggestion | None = None
        self._update, self._target, self._batches = update, target, batches

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise misconfiguration(
                trainer,
                f"SuggestLR looks at one optimizer in automatic optimization, here are {len(trainer.optimizers)}. In "
                "manual optimization, call stepguard.suggest_lr(model, optimizer, batches, loss) for each instead",
            )
        trainer.fit_loop.setup_data()
        loader = trainer.train_dataloader
        if loader is None:
            return
        (optimizer,) = trainer.optimizers
        try:
            with not_logging(pl_module):
                found = suggest_lr(
                    pl_module,
                    optimizer,
                    _moved(trainer, loader, self._batches),
                    lambda batch: _loss(trainer, pl_module, batch),
                    target=self._target,
                    most=self._batches,
                )
        except ValueError as error:
            raise misconfiguration(trainer, f"SuggestLR: {error}") from error
        self.suggestion = found = Suggestion(*trainer.strategy.broadcast(tuple(found)))
        rank_zero_info(f"stepguard: {found.advice}")
        if self._update:
            _set(trainer, optimizer, found.lr)


def _moved(trainer: Trainer, loader: Any, count: int) -> list[Any]:
    """The first batches, where the model is."""
    batches = itertools.islice(iter(loader), count)
    return [trainer.strategy.batch_to_device(batch, dataloader_idx=0) for batch in batches]


def _loss(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Tensor:
    with trainer.precision_plugin.train_step_context():
        found = pl_module.training_step(trainer.precision_plugin.convert_input(batch), 0)
    loss = found.get("loss") if isinstance(found, dict) else found
    if not isinstance(loss, Tensor):
        raise ValueError(f"training_step must return a loss, it returned {type(found).__name__}")
    return loss


def _set(trainer: Trainer, optimizer: Optimizer, lr: float) -> None:
    """Have the largest rate of the whole schedule be ``lr``, and all others in proportion."""
    peak = max(float(next(group[name] for name in _PEAKS if group.get(name))) for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        for name in (*_PEAKS, "min_lr"):
            if isinstance(group.get(name), Tensor):
                group[name].mul_(lr / peak)
            elif group.get(name):
                group[name] *= lr / peak
    for config in trainer.lr_scheduler_configs:
        rates = getattr(config.scheduler, "base_lrs", None)
        if rates:
            config.scheduler.base_lrs = [rate * lr / peak for rate in rates]
