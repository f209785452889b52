from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

_KINDS = ("_backward_hooks", "_backward_pre_hooks")
_REGISTERING = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}


class _NoneRegistered(TorchFunctionMode):
    """A forward that puts hooks on its own tensors puts them nowhere."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "") in _REGISTERING:
            return RemovableHandle(OrderedDict())
        return function(*args, **(kwargs or {}))


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """A backward pass inside is heard by no hook: those are for training's, and some of them change gradients.

    Raises:
        RuntimeError: Where hooks are on all modules there are, which are not ours to take off.
    """
    of_all = torch.nn.modules.module
    if of_all._global_backward_hooks or of_all._global_backward_pre_hooks:
        raise RuntimeError("backward hooks are registered for all modules of this process")
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    kept = [(m, kind, getattr(m, kind)) for m in modules for kind in _KINDS if getattr(m, kind)]
    try:
        for module, kind, _ in kept:
            setattr(module, kind, OrderedDict())
        with _NoneRegistered():
            yield
    finally:
        for module, kind, hooks in kept:
            setattr(module, kind, hooks)
