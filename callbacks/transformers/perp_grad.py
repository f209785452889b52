from __future__ import annotations

from functools import partial
from typing import Any

from torch import strided
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stepguard.geometry.perp_grad import Over, check_over, perp_grad_


class PerpGrad(TrainerCallback):
    """Takes out of the gradient what only scales the weights, before the optimizer sees it; logs nothing.

    See :func:`stepguard.perp_grad_`. Once a step, on what it accumulated, in any precision, after the trainer has
    clipped: with the norm restored, the norm that the trainer clips to and logs stays. :class:`StepGuard` measures the
    step that comes of it. Callbacks after this one see the gradient as it leaves it.

    Args:
        over: ``"tensor"``, each gradient against its own weights, or ``"all"`` of them as one vector.
        restore_norm: Make it as long as it was.
        matrices_only: Only parameters of two dimensions and more.

    Raises:
        ValueError: For another ``over``; at a step, for a sparse gradient.

    Example:
        >>> isinstance(PerpGrad(matrices_only=True), TrainerCallback)  # Trainer(callbacks=[PerpGrad()])
        True
    """

    def __init__(self, over: Over = "tensor", restore_norm: bool = True, matrices_only: bool = False):
        check_over(over)
        self._perp_grad_ = partial(perp_grad_, over=over, restore_norm=restore_norm, matrices_only=matrices_only)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        parameters = [p for group in kwargs["optimizer"].param_groups for p in group["params"]]
        try:
            self._perp_grad_(parameters)
        except ValueError as error:
            sparse = {p for p in parameters if p.grad is not None and p.grad.layout != strided}
            names = ", ".join(name for name, p in kwargs["model"].named_parameters() if p in sparse)
            raise ValueError(f"PerpGrad cannot change {names}: {error}") from error
