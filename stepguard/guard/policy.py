from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeGuard, get_args

from torch import Tensor, nn

Action = Literal["observe", "clamp", "drive"]
BatchNorm = Literal["train", "eval"]
Cadence = Literal["auto", "every"] | int
ClampTo = Literal["limit", "calm"]
ACTIONS: tuple[str, ...] = get_args(Action)


def step_scale(action: Action, r: float, target: float) -> float:
    """The factor s for the update, from its normalized step ratio; r is linear in the update, so s * r follows.

    ``observe`` leaves it alone; ``clamp`` gives min(1, target / r); ``drive`` gives target / r, so
    that the geometry sets the length and the learning rate only the direction. What is not finite
    gets 0 from both: it is not made at all.

    Example:
        >>> step_scale("clamp", r=4.0, target=1.0), step_scale("clamp", r=0.1, target=1.0)
        (0.25, 1.0)
        >>> step_scale("drive", r=0.1, target=1.0), step_scale("clamp", r=float("nan"), target=1.0)
        (10.0, 0.0)
    """
    if action == "observe":
        return 1.0
    if not math.isfinite(r):
        return 0.0
    if action == "clamp":
        return 1.0 if r <= target else target / r
    scale = target / r if r > 0 else 1.0
    # A step too small to move any logit has no length to be driven to.
    return scale if math.isfinite(scale) else 1.0


class Settings(NamedTuple):
    """What a user may choose about a guard; the arguments of :func:`stepguard.attach`, which explains them."""

    action: Action = "clamp"
    target: float = 1.0
    cadence: Cadence = "auto"
    logits: Callable[[Any], Tensor] | None = None
    forward: Callable[[nn.Module], Tensor] | None = None
    quantile: float = 1.0
    strict: bool = False
    batch_norm: BatchNorm = "train"
    budget: float = 0.03
    screen: bool | None = None
    clamp_to: ClampTo = "calm"

    @property
    def changes(self) -> bool:
        """Whether steps may be changed."""
        return self.action != "observe"

    @property
    def every(self) -> int:
        """Steps from one measurement to the next, if nothing else decides that."""
        return self.cadence if isinstance(self.cadence, int) else 1

    @property
    def triggered(self) -> bool:
        """Whether steps are measured when they may matter; to drive them takes the r of each."""
        return self.cadence == "auto" and self.action != "drive"

    @property
    def screens(self) -> bool:
        """Whether steps are measured by a secant first."""
        return self.triggered if self.screen is None else self.screen

    def checked(self) -> Settings:
        """These settings, if they make sense.

        Raises:
            ValueError: Naming what came and what to try.
        """
        action, target, cadence, quantile = self.action, self.target, self.cadence, self.quantile
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {', '.join(map(repr, ACTIONS))}, got {action!r}")
        if not _is_number(target) or not 0 < target < math.inf:
            raise ValueError(f"target must be a positive, finite number (1.0 is the radius itself), got {target!r}")
        if cadence not in ("auto", "every") and not (isinstance(cadence, int) and _is_number(cadence) and cadence >= 1):
            raise ValueError(f'cadence must be "auto", "every" or a positive number of steps, got {cadence!r}')
        if self.batch_norm not in ("train", "eval"):
            raise ValueError(f'batch_norm must be "train" (batch statistics) or "eval", got {self.batch_norm!r}')
        if self.clamp_to not in ("limit", "calm"):
            raise ValueError(
                f'clamp_to must be "limit" (the target) or "calm" (as if nothing had happened), got {self.clamp_to!r}'
            )
        if not _is_number(quantile) or not 0 < quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], 1.0 being the batch's maximum, got {quantile!r}")
        if not _is_number(self.budget) or not 0 < self.budget <= 1:
            raise ValueError(f"budget must be a share of the time in (0, 1], 0.03 being 3%, got {self.budget!r}")
        return self


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
