"""stepguard: is this optimizer step safe for the softmax it trains?

Everything loads on first use, so that ``import stepguard`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepguard.geometry import exact_radius, slope_spread, spread_radius, step_ratio
    from stepguard.guard import Guard, attach
    from stepguard.probe import logit_slopes
    from stepguard.records import Event, Reading

__version__ = "0.1.0"

_HOME = {
    "attach": "guard",
    "Guard": "guard",
    "Reading": "records",
    "Event": "records",
    "slope_spread": "geometry",
    "spread_radius": "geometry",
    "exact_radius": "geometry",
    "step_ratio": "geometry",
    "logit_slopes": "probe",
}

__all__ = [
    "Event",
    "Guard",
    "Reading",
    "attach",
    "exact_radius",
    "logit_slopes",
    "slope_spread",
    "spread_radius",
    "step_ratio",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"stepguard.{_HOME[name]}"), name)
    raise AttributeError(f"module 'stepguard' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
