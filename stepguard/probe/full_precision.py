from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stepguard.probe.attention import SlicedAttention


class FullPrecision(SlicedAttention):
    """No autocast even where a forward switches it on by itself, as accelerate makes every model do.

    One mode with that of attention, since each costs some time at every function. Not by another ``model.forward``,
    which would find accelerate's wrapping only.

    Args:
        kind: The kind of device that the model is on.
        found: Takes up that kind, if autocast was on there.
    """

    def __init__(self, kind: str, found: set[str]):
        super().__init__()
        self._kind, self._found = kind, found

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not torch.is_autocast_enabled(self._kind):
            return super().__torch_function__(function, types, args, kwargs)
        self._found.add(self._kind)
        with torch.autocast(self._kind, enabled=False):
            return super().__torch_function__(function, types, args, kwargs)
