from __future__ import annotations

import logging
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerControl, TrainerState, TrainingArguments

from stepguard.callbacks.transformers.watching import Watching
from stepguard.guard import CollapseMonitor, CollapseSettings, OnWarning, about
from stepguard.records import CollapseReading, metric_values

log = logging.getLogger("stepguard")


class SoftmaxCollapseMonitor(Watching):
    """Says when the softmax of the loss is about to collapse, forecasts when, and cures it if asked to.

    Whenever the trainer logs its loss, beside it, from the latest reading since the last time, and at once with an
    event: ``softmax/collapse``, ``softmax/zero_terms``, ``softmax/zero_gradients``, ``softmax/headroom_nats``,
    ``softmax/headroom_min``, ``softmax/headroom_median``, ``softmax/headroom_trend``, ``softmax/steps_to_collapse``,
    ``softmax/nlm_alignment``, ``softmax/logit_norm``, ``softmax/weight_norm``, ``softmax/curing``,
    ``softmax/cost_share``. Where the reporter takes text (TensorBoard, Weights & Biases), ``stepguard/events``.
    TensorBoard and Weights & Biases show all under ``train/``, as they do with whatever the trainer logs. Every reading
    and event is a line of ``stepguard.jsonl`` beside TensorBoard's file, or else in ``output_dir``.

    Args:
        on_warning: None only tells; ``"perp_grad"`` switches perpGrad on until there is headroom again; ``"stop"``
            ends the training, with a reason.
        cadence: Steps from one reading to the next; ``"auto"`` keeps them below 2% of the time.
        horizon: A forecast of collapse within this many steps is a warning.
        headroom: Fewer nats than this for one sample in a hundred are a warning.
        per_layer: Also log ``softmax/nlm_alignment/<parameter>``.
        strict: Raise when a step cannot be looked at, instead of warning once and going on.

    Raises:
        ValueError: For a setting that makes no sense; when training begins, if the optimizer moves what is not the
            model's, or the trainer has two of these.

    Example:
        >>> from transformers import TrainerCallback
        >>> isinstance(SoftmaxCollapseMonitor(on_warning="perp_grad"), TrainerCallback)  # Trainer(callbacks=[...])
        True
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
        super().__init__(self._settings._asdict())

    @property
    def last(self) -> CollapseReading | None:
        """The latest reading, or None before the first."""
        return self._watcher.last if isinstance(self._watcher, CollapseMonitor) else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _, readings, events = self._memory.drain()
        for reading in readings:
            self._log.keep(metric_values(reading))
            if events:
                self._log.write(metric_values(reading), args, state, control, **kwargs)
        for event in events:
            self._log.tell(event, args, state, control, **kwargs)
        reason = self._watcher.stop_reason if isinstance(self._watcher, CollapseMonitor) else None
        if reason and not control.should_training_stop:
            log.warning("SoftmaxCollapseMonitor stops the training. %s", reason)
            control.should_training_stop = True

    def _watch(self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> CollapseMonitor:
        places = self._places(about(model, optimizer, self._settings))
        return CollapseMonitor(model, optimizer, self._settings, places)
