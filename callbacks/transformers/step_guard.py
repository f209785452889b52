from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerControl, TrainerState, TrainingArguments

from stepguard.callbacks.transformers.watching import Watching
from stepguard.guard import Action, BatchNorm, Cadence, ClampTo, Guard, Settings, about
from stepguard.records import METRICS, Reading, breach_values, metric_values


class StepGuard(Watching):
    """Looks at every optimizer step, measures r where it may matter, clamps what is unsafe, and logs all of it.

    Whenever the trainer logs its loss, beside it, from the latest reading since the last time: ``stepguard/r``,
    ``stepguard/tau``, ``stepguard/rho``, ``stepguard/spread``, ``stepguard/scale``, ``stepguard/lr_applied``,
    ``stepguard/lr_safe``, ``stepguard/cost_share``. At every step beyond the target, whatever the cadence, in
    ``log_history`` and every reporter, but not on the screen: ``stepguard/r_breach`` and, where the reporter takes
    text (TensorBoard, Weights & Biases), ``stepguard/events``. TensorBoard and Weights & Biases show all under
    ``train/``, as they do with whatever the trainer logs. Every reading and event is a line of ``stepguard.jsonl``
    beside TensorBoard's file, or else in ``output_dir``.

    Args:
        action: ``"observe"``, ``"clamp"`` or ``"drive"``; see :func:`stepguard.attach`.
        target: Limit on r.
        cadence: ``"auto"``, ``"every"`` or a number of steps.
        module: Name of the submodule to guard, for ``logits``; None is the model, whatever part of it the loss uses.
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
        ValueError: For a setting that makes no sense; when training begins, if ``module`` is not there, the optimizer
            moves what is not the model's, or the trainer has two of these.

    Example:
        >>> from transformers import TrainerCallback
        >>> isinstance(StepGuard(target=0.5), TrainerCallback)  # Trainer(callbacks=[StepGuard(target=0.5)])
        True
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
        given = {name: value for name, value in self._settings._asdict().items() if name not in ("logits", "forward")}
        super().__init__({**given, "module": module}, ["logits"] if logits else [])

    @property
    def last(self) -> Reading | None:
        """The latest reading, or None before the first."""
        return self._watcher.last if isinstance(self._watcher, Guard) else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        readings, _, events = self._memory.drain()
        for reading in readings:
            values = metric_values(reading)
            self._log.keep({m.key(): values[m.key()] for m in METRICS if m.key() in values})
            if reading.breach:
                self._log.write(breach_values(reading), args, state, control, **kwargs)
        for event in events:
            self._log.tell(event, args, state, control, **kwargs)

    def _watch(self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> Guard:
        module = self._find(model)
        places = self._places(about(module, optimizer, self._settings))
        return Guard(module, optimizer, self._settings, places, schedule=scheduler)

    def _find(self, model: nn.Module) -> nn.Module:
        if self._module is None:
            return model
        try:
            return model.get_submodule(self._module)
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children()) or "none"
            raise ValueError(
                f"StepGuard(module={self._module!r}): {type(model).__name__} has no such submodule; "
                f"its children are {names}"
            ) from None
