from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from stepguard.guard.collapse_settings import CollapseSettings
from stepguard.guard.policy import Settings


def about(model: nn.Module, optimizer: Optimizer, settings: Settings | CollapseSettings) -> dict[str, Any]:
    """What the first line of records says of a run, for :class:`stepguard.records.JsonLines`.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> said = about(model, torch.optim.SGD(model.parameters(), lr=0.1), Settings(target=0.5))
        >>> said["writes"], said["model"], said["parameters"], said["settings"]["target"], said["groups"]
        ('guard', 'Linear', 9, 0.5, [{'name': None, 'parameters': 9, 'lr': 0.1, 'momentum': 0, ...}])
    """
    several = distributed.is_available() and distributed.is_initialized()
    return {
        "writes": "guard" if isinstance(settings, Settings) else "monitor",
        "stepguard": import_module("stepguard").__version__,
        "torch": torch.__version__,
        "world_size": distributed.get_world_size() if several else 1,
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "optimizer": type(optimizer).__name__,
        "groups": [_group(group) for group in optimizer.param_groups],
        "settings": {name: _said(value) for name, value in settings._asdict().items()},
    }


def _group(group: dict[str, Any]) -> dict[str, Any]:
    rest = {name: _said(value) for name, value in group.items() if name != "params"}
    return {"name": group.get("name"), "parameters": sum(p.numel() for p in group["params"]), **rest}


def _said(value: Any) -> Any:
    """A function by its name, a tensor of one number by that; everything else is plain already."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else f"a tensor of {value.numel()}"
    return getattr(value, "__qualname__", type(value).__name__) if callable(value) else value
