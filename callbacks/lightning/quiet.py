from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule

from stepguard.callbacks.lightning.names import classes


@contextmanager
def not_logging(pl_module: LightningModule) -> Iterator[None]:
    """What a forward logs is not logged: training did so, or will."""
    kinds = classes("LightningModule")
    modules = [m for m in pl_module.modules() if isinstance(m, kinds)]
    found = [(m, name, vars(m).get(name)) for m in modules for name in ("log", "log_dict")]
    for module, name, _ in found:
        vars(module)[name] = _say_nothing
    try:
        yield
    finally:
        for module, name, before in found:
            if before is None:
                del vars(module)[name]
            else:
                vars(module)[name] = before


def _say_nothing(*args: Any, **kwargs: Any) -> None:
    return None
