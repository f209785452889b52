from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn, strided
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stepguard.callbacks.lightning.names import Callback, misconfiguration
from stepguard.geometry.perp_grad import Over, check_over, perp_grad_


class PerpGrad(Callback):
    """Takes out of the gradient what only scales the weights, before any optimizer sees it; logs nothing.

    See :func:`stepguard.perp_grad_`. Once a step, on what it accumulated, in any precision, in automatic and manual
    optimization; for each of several optimizers with its own parameters, at its own steps. An optimizer that asks for
    gradients several times in a step (LBFGS, SAM) gets each of them so. :class:`StepGuard` measures the step that
    comes of it. Callbacks after this one see the gradient as it leaves it.

    Args:
        over: ``"tensor"``, each gradient against its own weights, or ``"all"`` of an optimizer's as one vector.
        restore_norm: Make it as long as it was.
        matrices_only: Only parameters of two dimensions and more.
        before_clipping: Do it before the trainer clips, not right before the optimizer. With the norm restored and
            clipping by norm that is the same, but for gradients that become zero; not so for clipping by value.

    Raises:
        ValueError: For another ``over``.
        MisconfigurationException: At a step, for a sparse gradient.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PerpGrad(matrices_only=True)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        over: Over = "tensor",
        restore_norm: bool = True,
        matrices_only: bool = False,
        before_clipping: bool = False,
    ):
        check_over(over)
        self._perp_grad_ = partial(perp_grad_, over=over, restore_norm=restore_norm, matrices_only=matrices_only)
        self._before_clipping = before_clipping
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._before_clipping:
            hook = partial(self._before_step, trainer, pl_module)
            self._hooks = [optimizer.register_step_pre_hook(hook) for optimizer in trainer.optimizers]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._before_clipping:
            self._apply(trainer, pl_module, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    # Not by guard.hooks.hook_step, which tells of the first gradient of a step only: LBFGS would compare
    # that one with others as they are, and SAM would step along the second.
    def _before_step(
        self, trainer: Trainer, module: nn.Module, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._apply(trainer, module, optimizer)
            return None

        def closure_then_apply() -> Any:
            loss = closure()
            self._apply(trainer, module, optimizer)
            return loss

        if len(args) > 1:
            return (args[0], closure_then_apply, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_apply}

    def _apply(self, trainer: Trainer, module: nn.Module, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        try:
            self._perp_grad_(parameters)
        except ValueError as error:
            sparse = {p for p in parameters if p.grad is not None and p.grad.layout != strided}
            names = ", ".join(name for name, p in module.named_parameters() if p in sparse)
            raise misconfiguration(trainer, f"PerpGrad cannot change {names}: {error}") from error

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
