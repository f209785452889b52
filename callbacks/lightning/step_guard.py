from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from stepguard.callbacks.lightning.each_optimizer import EachOptimizer, Notes
from stepguard.callbacks.lightning.loggers import log
from stepguard.callbacks.lightning.names import misconfiguration
from stepguard.callbacks.lightning.quiet import not_logging
from stepguard.callbacks.lightning.schedule import schedule_of
from stepguard.callbacks.lightning.screen import put
from stepguard.guard import Action, BatchNorm, Cadence, ClampTo, Guard, Settings, about
from stepguard.records import METRICS, Event, Reading, breach_values, metric_values


class StepGuard(EachOptimizer[Guard]):
    """Looks at every optimizer step, measures r where it may matter, clamps what is unsafe, and logs all of it.

    Logged at most at the trainer's cadence, and always in ``trainer.callback_metrics``: ``stepguard/r``,
    ``stepguard/tau``, ``stepguard/rho``, ``stepguard/spread``, ``stepguard/scale``,
    ``stepguard/lr_applied``, ``stepguard/lr_safe``, ``stepguard/cost_share``. At every step beyond the
    target, whatever the cadence: ``stepguard/r_breach`` and, where the logger takes text, ``stepguard/events``. Every
    reading and event is a line of ``stepguard.jsonl`` beside the logger's own file.

    Where the module has several optimizers (manual optimization) each has a guard, which takes the steps and the
    losses of its own only, and the optimizer's index stands behind the names: ``stepguard/r/0``, ``stepguard/r/1``.

    The progress bar shows ``stepguard/r``. Breaches, clamps and forecasts are printed above it, many in a row together.

    Args:
        action: ``"observe"``, ``"clamp"`` or ``"drive"``; see :func:`stepguard.attach`.
        target: Limit on r.
        cadence: ``"auto"``, ``"every"`` or a number of steps.
        module: Name of the submodule to guard, for ``logits``; None is the LightningModule, whatever part
            of itself its ``training_step`` calls.
        logits: Function from that module's output to the logits, for a softmax that is not PyTorch's own.
        quantile: Which quantile over the samples counts as the batch's r; 1 is the maximum.
        strict: Raise when a step cannot be measured, instead of warning once and going on.
        batch_norm: ``"train"`` measures with batch statistics, as training does; ``"eval"`` with running averages.
        budget: Share of the time that measuring may cost, with ``cadence="auto"`` and nothing near the limit.
        screen: Measure by one more forward pass first, and exactly where r comes near the target; None does so with
            ``cadence="auto"`` alone.
        clamp_to: ``"calm"`` leaves a step beyond its target as long as if nothing had happened, ``"limit"`` as long
            as the target allows.
        optimizer: Index of the only optimizer to guard, as ``configure_optimizers`` returns them, for settings of its
            own: ``[StepGuard(optimizer=0), StepGuard(optimizer=1, target=0.3)]``. None is each.
        show: Show r in the progress bar, and print events.

    Raises:
        ValueError: For a setting that makes no sense.
        MisconfigurationException: At set-up, if ``module`` is not there; at the start, if ``optimizer`` is not, or
            moves other parameters than the module's.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StepGuard(target=0.5)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        action: Action = "clamp",
        target: float = 1.0,
        cadence: Cadence = "auto",
        module: str | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        quantile: float = 1.0,
        strict: bool = False,
        batch_norm: BatchNorm = "train",
        budget: float = 0.03,
        screen: bool | None = None,
        clamp_to: ClampTo = "calm",
        optimizer: int | None = None,
        show: bool = True,
    ):
        super().__init__(optimizer, show)
        self._settings = Settings(
            action, target, cadence, logits, None, quantile, strict, batch_norm, budget, screen, clamp_to
        ).checked()
        self._module = module

    @property
    def last(self) -> Reading | None:
        """The latest reading of any guard, or None before the first."""
        last: Reading | None = self._last
        return last

    @property
    def guards(self) -> list[Guard]:
        """The guard of each optimizer, from the start of training on."""
        return self._watchers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._module is not None:
            self._find(trainer, pl_module)

    def _watch(self, trainer: Trainer, pl_module: LightningModule, notes: Notes) -> Guard:
        module = self._find(trainer, pl_module)
        return Guard(
            module,
            notes.own.optimizer,
            self._settings,
            self._places(trainer, notes, about(module, notes.own.optimizer, self._settings)),
            shield=lambda: not_logging(pl_module),
            schedule=schedule_of(trainer),
            label=notes.own.label,
        )

    def _log(self, trainer: Trainer, notes: Notes, readings: list[Reading], events: list[Event], step: int) -> None:
        for reading in readings:
            values = metric_values(reading)
            kept = {m.key(): values[m.key()] for m in METRICS if m.key() in values}
            trainer.callback_metrics.update({k: torch.tensor(v) for k, v in notes.own.named(kept).items()})
            if notes.thinning.takes(trainer, step):
                log(trainer, notes.own, partial(metric_values, reading), step)
            elif reading.breach:
                log(trainer, notes.own, partial(breach_values, reading), step)
        if self._show and readings:
            put(trainer, notes.own.named({METRICS[0].key(): readings[-1].r}))

    def _find(self, trainer: Trainer, pl_module: LightningModule) -> nn.Module:
        if self._module is None:
            return pl_module
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children()) or "none"
            message = f"{type(pl_module).__name__} has no such submodule; its children are {names}"
            raise misconfiguration(trainer, f"StepGuard(module={self._module!r}): {message}") from None
