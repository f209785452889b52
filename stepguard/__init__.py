"""stepguard: is this optimizer step safe for the softmax it trains?

Everything loads on first use, so that ``import stepguard`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepguard.geometry import (
        SoftmaxCollapse,
        StableMaxCrossEntropyLoss,
        exact_radius,
        nlm_alignment,
        perp_grad_,
        slope_spread,
        softmax_collapse,
        spread_radius,
        stablemax_cross_entropy,
        step_ratio,
    )
    from stepguard.guard import CollapseMonitor, Guard, Suggestion, attach, monitor_collapse, suggest_lr
    from stepguard.probe import logit_slopes
    from stepguard.records import CollapseReading, Event, Reading

__version__ = "0.1.0"

_HOME = {
    "attach": "guard",
    "Guard": "guard",
    "monitor_collapse": "guard",
    "CollapseMonitor": "guard",
    "suggest_lr": "guard",
    "Suggestion": "guard",
    "CollapseReading": "records",
    "Reading": "records",
    "Event": "records",
    "slope_spread": "geometry",
    "spread_radius": "geometry",
    "exact_radius": "geometry",
    "step_ratio": "geometry",
    "softmax_collapse": "geometry",
    "SoftmaxCollapse": "geometry",
    "nlm_alignment": "geometry",
    "perp_grad_": "geometry",
    "stablemax_cross_entropy": "geometry",
    "StableMaxCrossEntropyLoss": "geometry",
    "logit_slopes": "probe",
}

__all__ = [
    "CollapseMonitor",
    "CollapseReading",
    "Event",
    "Guard",
    "Reading",
    "SoftmaxCollapse",
    "StableMaxCrossEntropyLoss",
    "Suggestion",
    "attach",
    "exact_radius",
    "logit_slopes",
    "monitor_collapse",
    "nlm_alignment",
    "perp_grad_",
    "slope_spread",
    "softmax_collapse",
    "spread_radius",
    "stablemax_cross_entropy",
    "step_ratio",
    "suggest_lr",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"stepguard.{_HOME[name]}"), name)
    raise AttributeError(f"module 'stepguard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
