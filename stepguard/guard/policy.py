from __future__ import annotations

import math
from typing import Literal, get_args

Action = Literal["observe", "clamp", "drive"]
Cadence = Literal["auto", "every"] | int
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


def check_policy(action: str, target: float, quantile: float = 1.0) -> None:
    """Refuse an action, target or quantile that makes no sense.

    Raises:
        ValueError: Naming what came and what to try.
    """
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(map(repr, ACTIONS))}, got {action!r}")
    if isinstance(target, bool) or not isinstance(target, (int, float)) or not 0 < target < math.inf:
        raise ValueError(f"target must be a positive, finite number (1.0 is the radius itself), got {target!r}")
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float)) or not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], 1.0 being the batch's maximum, got {quantile!r}")


def check_cadence(cadence: str | int) -> int:
    """Steps from one measurement to the next.

    Raises:
        ValueError: If it is neither ``"auto"``, ``"every"`` nor a positive number of steps.
    """
    if cadence in ("auto", "every"):
        return 1
    if isinstance(cadence, int) and not isinstance(cadence, bool) and cadence >= 1:
        return cadence
    raise ValueError(f'cadence must be "auto", "every" or a positive number of steps, got {cadence!r}')
