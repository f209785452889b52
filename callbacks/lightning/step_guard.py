from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from stepguard.callbacks.lightning.loggers import Thinning, log, tell
from stepguard.callbacks.lightning.quiet import not_logging
from stepguard.callbacks.lightning.schedule import schedule_of
from stepguard.guard import Action, BatchNorm, Cadence, ClampTo, Guard, Settings, check_owned
from stepguard.records import METRICS, Memory, Reading, breach_values, metric_values


class StepGuard(Callback):
    """Looks at every optimizer step, measures r where it may matter, clamps what is unsafe, and logs all of it.

    Logged at most at the trainer's cadence, and always in ``trainer.callback_metrics``: ``stepguard/r``,
    ``stepguard/tau``, ``stepguard/rho``, ``stepguard/spread``, ``stepguard/scale``,
    ``stepguard/lr_applied``, ``stepguard/lr_safe``, ``stepguard/cost_share``. At every step beyond the
    target, whatever the cadence: ``stepguard/r_breach`` and, where the logger takes text, ``stepguard/events``.

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

    Raises:
        ValueError: For a setting that makes no sense.
        MisconfigurationException: At set-up, if ``module`` is not there, or the optimizers cannot be guarded.

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
    ):
        self._settings = Settings(
            action, target, cadence, logits, None, quantile, strict, batch_norm, budget, screen, clamp_to
        ).checked()
        self._module = module
        self._memory = Memory()
        self._thinning = Thinning()
        self._guard: Guard | None = None
        self._state: dict[str, Any] = {}

    @property
    def last(self) -> Reading | None:
        """The latest reading, or None before the first."""
        return self._guard.last if self._guard else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._module is not None:
            self._find(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise MisconfigurationException(
                f"StepGuard guards one optimizer, this module configured {len(trainer.optimizers)}. In manual "
                "optimization, call stepguard.attach(model, optimizer) for each instead"
            )
        (optimizer,) = trainer.optimizers
        try:
            check_owned(pl_module, optimizer)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self._guard = Guard(
            self._find(pl_module),
            optimizer,
            self._settings,
            [self._memory],
            lambda: not_logging(pl_module),
            schedule_of(trainer),
        )
        if self._state:
            self._guard.load_state_dict(self._state)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        readings, _, events = self._memory.drain()
        # The axis of self.log: optimizer steps before this one.
        step = trainer.global_step - 1
        for reading in readings:
            self._log(trainer, reading, step)
        for event in events:
            tell(trainer, event, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        return self._guard.state_dict() if self._guard else self._state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _find(self, pl_module: LightningModule) -> nn.Module:
        if self._module is None:
            return pl_module
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children()) or "none"
            raise MisconfigurationException(
                f"StepGuard(module={self._module!r}): {type(pl_module).__name__} has no such submodule; "
                f"its children are {names}"
            ) from None

    def _detach(self) -> None:
        if self._guard:
            self._state = self._guard.state_dict()
            self._guard.detach()

    def _log(self, trainer: Trainer, reading: Reading, step: int) -> None:
        values = metric_values(reading)
        trainer.callback_metrics.update({m.key(): torch.tensor(values[m.key()]) for m in METRICS if m.key() in values})
        if self._thinning.takes(trainer, step):
            log(trainer, partial(metric_values, reading), step)
        elif reading.breach:
            log(trainer, partial(breach_values, reading), step)
