from __future__ import annotations

from functools import partial
from typing import get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from stepguard.geometry import Over, perp_grad_
from stepguard.guard.hooks import hook_step


class PerpGrad(Callback):
    """Takes out of each gradient what only scales the weights, before the optimizer sees it; logs nothing.

    See :func:`stepguard.perp_grad_` for what it does to which parameters. Once per optimizer step, for every
    optimizer, on the gradients of all batches that it accumulated, in any precision.

    Args:
        over: ``"tensor"``, each gradient against its own parameter; ``"all"``, the whole against all of an optimizer's.
        restore_norm: Make it as long as it was.
        matrices_only: Leave alone what has fewer than two dimensions.
        before_clipping: Do it before the trainer clips gradients, instead of right before the optimizer. With the
            norm restored, clipping by the norm gives the same either way. An optimizer that asks for gradients
            several times in one step, such as LBFGS, has all of them changed only with True.

    Raises:
        ValueError: For another ``over``.
        MisconfigurationException: At a step, if a parameter has a sparse gradient.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PerpGrad()], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        over: Over = "tensor",
        restore_norm: bool = True,
        matrices_only: bool = False,
        before_clipping: bool = False,
    ):
        if over not in get_args(Over):
            raise ValueError(f'over must be "tensor" or "all", got {over!r}')
        self._over, self._restore_norm, self._matrices_only = over, restore_norm, matrices_only
        self._before_clipping = before_clipping
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._before_clipping:
            for optimizer in trainer.optimizers:
                self._hooks += hook_step(optimizer, partial(self._apply, pl_module, optimizer), _nothing)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._before_clipping:
            self._apply(pl_module, optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _apply(self, module: nn.Module, optimizer: Optimizer, moved: bool = False) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        try:
            perp_grad_(parameters, over=self._over, restore_norm=self._restore_norm, matrices_only=self._matrices_only)
        except ValueError as error:
            names = [n for n, p in module.named_parameters() if p.grad is not None and p.grad.is_sparse]
            raise MisconfigurationException(f"PerpGrad, {', '.join(names)}: {error}") from error

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _nothing() -> None:
    return None
