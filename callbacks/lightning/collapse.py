from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from stepguard.callbacks.lightning.each_optimizer import EachOptimizer, Notes
from stepguard.callbacks.lightning.loggers import Thinning, log
from stepguard.guard import CollapseMonitor, CollapseSettings, OnWarning, about
from stepguard.records import CollapseReading, Event, metric_values


class SoftmaxCollapseMonitor(EachOptimizer[CollapseMonitor]):
    """Says when the softmax of the loss is about to collapse, forecasts when, and cures it if asked to.

    Logged with each reading, at most at the trainer's cadence, and always in ``trainer.callback_metrics``:
    ``softmax/collapse``, ``softmax/zero_terms``, ``softmax/zero_gradients``, ``softmax/headroom_nats``,
    ``softmax/headroom_min``, ``softmax/headroom_median``, ``softmax/headroom_trend``, ``softmax/steps_to_collapse``,
    ``softmax/nlm_alignment``, ``softmax/logit_norm``, ``softmax/weight_norm``, ``softmax/curing``,
    ``softmax/cost_share``. Where the logger takes text, ``stepguard/events``. Every reading and event is a line of
    ``stepguard.jsonl`` beside the logger's own file.

    Where the module has several optimizers (manual optimization) each has a monitor, which takes the losses and cures
    the gradients of its own only, and the optimizer's index stands behind the names: ``softmax/collapse/0``.

    Args:
        on_warning: None only tells; ``"perp_grad"`` switches perpGrad on until there is headroom again; ``"stop"``
            ends the training, with a reason.
        cadence: Steps from one reading to the next; ``"auto"`` keeps them below 2% of the time.
        horizon: A forecast of collapse within this many steps is a warning.
        headroom: Fewer nats than this for one sample in a hundred are a warning.
        per_layer: Also log ``softmax/nlm_alignment/<parameter>``.
        strict: Raise when a step cannot be looked at, instead of warning once and going on.
        optimizer: Index of the only optimizer to watch, as ``configure_optimizers`` returns them; None is each.
        show: Print its events, above the progress bar if there is one.

    Raises:
        ValueError: For a setting that makes no sense.
        MisconfigurationException: At the start, if ``optimizer`` is not there, or moves other parameters than the
            module's.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = SoftmaxCollapseMonitor(on_warning="perp_grad")
        >>> trainer = Trainer(callbacks=[monitor], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        on_warning: OnWarning | None = None,
        cadence: Literal["auto"] | int = "auto",
        horizon: int = 500,
        headroom: float = 1.0,
        per_layer: bool = False,
        strict: bool = False,
        optimizer: int | None = None,
        show: bool = True,
    ):
        super().__init__(optimizer, show)
        self._settings = CollapseSettings(on_warning, cadence, horizon, headroom, per_layer, strict).checked()

    @property
    def last(self) -> CollapseReading | None:
        """The latest reading of any monitor, or None before the first."""
        last: CollapseReading | None = self._last
        return last

    @property
    def monitors(self) -> list[CollapseMonitor]:
        """The monitor of each optimizer, from the start of training on."""
        return self._watchers

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        reasons = [monitor.stop_reason for monitor in self._watchers if monitor.stop_reason]
        if reasons and not trainer.should_stop:
            rank_zero_info(f"SoftmaxCollapseMonitor stops the training. {reasons[0]}")
            trainer.should_stop = True

    def _watch(self, trainer: Trainer, pl_module: LightningModule, notes: Notes) -> CollapseMonitor:
        places = self._places(trainer, notes, about(pl_module, notes.own.optimizer, self._settings))
        return CollapseMonitor(pl_module, notes.own.optimizer, self._settings, places, label=notes.own.label)

    def _thinning(self) -> Thinning:
        return Thinning(first=True)

    def _log(
        self, trainer: Trainer, notes: Notes, readings: list[CollapseReading], events: list[Event], step: int
    ) -> None:
        for reading in readings:
            values = notes.own.named(metric_values(reading))
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            if notes.thinning.takes(trainer, step) or events:
                log(trainer, notes.own, partial(metric_values, reading), step)
