"""One package or file a trainer. ``from stepguard.callbacks import StepGuard`` is Lightning's.

The trainer itself is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepguard.callbacks.lightning import PerpGrad, SoftmaxCollapseMonitor, StepGuard, SuggestLR

__all__ = ["PerpGrad", "SoftmaxCollapseMonitor", "StepGuard", "SuggestLR"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from stepguard.callbacks import lightning
        from stepguard.callbacks.lightning.names import join_all_names

        join_all_names()
        return getattr(lightning, name)
    raise AttributeError(f"module 'stepguard.callbacks' has no attribute {name!r}")
