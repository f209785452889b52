from __future__ import annotations

from typing import Literal, NamedTuple, get_args

OnWarning = Literal["perp_grad", "stop"]


class CollapseSettings(NamedTuple):
    """What a user may choose about a monitor; the arguments of :func:`monitor_collapse`, which explains them."""

    on_warning: OnWarning | None = None
    cadence: Literal["auto"] | int = "auto"
    horizon: int = 500
    headroom: float = 1.0
    per_layer: bool = False
    strict: bool = False

    def checked(self) -> CollapseSettings:
        """These settings, if they make sense.

        Raises:
            ValueError: Naming what came and what to try.
        """
        if self.on_warning is not None and self.on_warning not in get_args(OnWarning):
            raise ValueError(f'on_warning must be None, "perp_grad" or "stop", got {self.on_warning!r}')
        if self.cadence != "auto" and not _is_count(self.cadence):
            raise ValueError(f'cadence must be "auto" or a positive number of steps, got {self.cadence!r}')
        if not _is_count(self.horizon):
            raise ValueError(f"horizon must be a positive number of steps, got {self.horizon!r}")
        if isinstance(self.headroom, bool) or not isinstance(self.headroom, (int, float)) or not self.headroom > 0:
            raise ValueError(f"headroom must be a positive number of nats, got {self.headroom!r}")
        return self


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
