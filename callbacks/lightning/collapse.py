from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from stepguard.callbacks.lightning.loggers import Thinning, log, tell
from stepguard.guard import CollapseMonitor, CollapseSettings, OnWarning, check_owned
from stepguard.records import CollapseReading, Memory, metric_values


class SoftmaxCollapseMonitor(Callback):
    """Says when the softmax of the loss is about to collapse, forecasts when, and cures it if asked to.

    Logged with each reading, at most at the trainer's cadence, and always in ``trainer.callback_metrics``:
    ``softmax/collapse``, ``softmax/zero_terms``, ``softmax/zero_gradients``, ``softmax/headroom_nats``,
    ``softmax/headroom_min``, ``softmax/headroom_median``, ``softmax/headroom_trend``, ``softmax/steps_to_collapse``,
    ``softmax/nlm_alignment``, ``softmax/logit_norm``, ``softmax/weight_norm``, ``softmax/curing``,
    ``softmax/cost_share``. Where the logger takes text, ``stepguard/events``.

    Args:
        on_warning: None only tells; ``"perp_grad"`` switches perpGrad on until there is headroom again; ``"stop"``
            ends the training, with a reason.
        cadence: Steps from one reading to the next; ``"auto"`` keeps them below 2% of the time.
        horizon: A forecast of collapse within this many steps is a warning.
        headroom: Fewer nats than this for one sample in a hundred are a warning.
        per_layer: Also log ``softmax/nlm_alignment/<parameter>``.
        strict: Raise when a step cannot be looked at, instead of warning once and going on.

    Raises:
        ValueError: For a setting that makes no sense.
        MisconfigurationException: At the start, if the optimizers cannot be watched.

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
    ):
        self._settings = CollapseSettings(on_warning, cadence, horizon, headroom, per_layer, strict).checked()
        self._memory = Memory()
        self._monitor: CollapseMonitor | None = None
        self._state: dict[str, Any] = {}
        self._thinning = Thinning(first=True)

    @property
    def last(self) -> CollapseReading | None:
        """The latest reading, or None before the first."""
        return self._monitor.last if self._monitor else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"SoftmaxCollapseMonitor watches one optimizer, this module configured {len(trainer.optimizers)}. In "
                "manual optimization, call stepguard.monitor_collapse(model, optimizer) for each instead"
            )
        (optimizer,) = trainer.optimizers
        try:
            check_owned(pl_module, optimizer)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._monitor = CollapseMonitor(pl_module, optimizer, self._settings, [self._memory])
        if self._state:
            self._monitor.load_state_dict(self._state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        _, readings, events = self._memory.drain()
        # The axis of self.log: optimizer steps before this one.
        step = trainer.global_step - 1
        for reading in readings:
            values = metric_values(reading)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            if self._thinning.takes(trainer, step) or events:
                log(trainer, partial(metric_values, reading), step)
        for event in events:
            tell(trainer, event, step)
        if self._monitor and self._monitor.stop_reason and not trainer.should_stop:
            rank_zero_info(f"SoftmaxCollapseMonitor stops the training. {self._monitor.stop_reason}")
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        return self._monitor.state_dict() if self._monitor else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _detach(self) -> None:
        if self._monitor:
            self._state = self._monitor.state_dict()
            self._monitor.detach()
