"""What people look at: the console and the pictures. ``from stepguard.views import Panel`` is for a loop of your own.

rich is imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepguard.views.panel import Panel

__all__ = ["Panel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from stepguard.views import panel

        return getattr(panel, name)
    raise AttributeError(f"module 'stepguard.views' has no attribute {name!r}")
