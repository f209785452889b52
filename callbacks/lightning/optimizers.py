from __future__ import annotations

from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from stepguard.callbacks.lightning.names import misconfiguration
from stepguard.guard import check_owned


class Own(NamedTuple):
    """One of a module's optimizers, and how what is seen of it is named.

    Example:
        >>> import torch
        >>> second = Own(1, torch.optim.SGD([torch.zeros(1)]), several=True)
        >>> second.label, second.named({"stepguard/r": 0.5})
        ('optimizer 1, ', {'stepguard/r/1': 0.5})
    """

    number: int
    optimizer: Optimizer
    several: bool
    """Whether the module has others."""

    @property
    def label(self) -> str:
        """What events and warnings begin with."""
        return f"optimizer {self.number}, " if self.several else ""

    def named(self, values: dict[str, float], separator: str = "/") -> dict[str, float]:
        """Metrics with the optimizer's index behind their names, where there are several."""
        return {f"{name}{separator}{self.number}": v for name, v in values.items()} if self.several else values


def checked_index(index: int | None) -> int | None:
    """The index of an optimizer, if it can be one.

    Raises:
        ValueError: Naming what came.
    """
    if index is not None and (isinstance(index, bool) or not isinstance(index, int) or index < 0):
        raise ValueError(f"optimizer must be None (each) or an index as in configure_optimizers, got {index!r}")
    return index


def chosen(name: str, index: int | None, trainer: Trainer, pl_module: LightningModule) -> list[Own]:
    """The optimizers that a callback looks after.

    Args:
        name: Of the callback.
        index: One of them; None is each.
        trainer: Which has them.
        pl_module: Whose parameters they must move.

    Raises:
        MisconfigurationException: If there is none, or it moves something else.
    """
    optimizers, module = trainer.optimizers, type(pl_module).__name__
    if not optimizers:
        raise misconfiguration(trainer, f"{name} needs an optimizer, and {module} configured none")
    if index is not None and index >= len(optimizers):
        last = len(optimizers) - 1
        message = f"{name}(optimizer={index}): {module} configured {last + 1}, and they are counted from 0 to {last}"
        raise misconfiguration(trainer, message)
    several = len(optimizers) > 1
    found = [Own(i, optimizer, several) for i, optimizer in enumerate(optimizers) if index in (None, i)]
    for own in found:
        try:
            check_owned(pl_module, own.optimizer)
        except ValueError as error:
            raise misconfiguration(trainer, f"{name}: {own.label}{error}") from error
    return found
