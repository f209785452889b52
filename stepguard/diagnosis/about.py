from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stepguard.diagnosis.columns import column, last_known
from stepguard.diagnosis.processes import Setting, changed_settings, guard_starts, resumed_at
from stepguard.records import Run

_TOLD = ("lr", "initial_lr", "momentum", "nesterov", "betas", "beta", "alpha", "eps", "weight_decay", "rho")
"""Settings of a parameter group that are worth a line."""


class About(NamedTuple):
    """Which run it is; None where its records do not tell."""

    name: str
    path: str
    model: str | None
    parameters: int | None
    optimizer: str | None
    hyper: dict[str, Any]
    """Settings of the first parameter group."""
    groups: int
    action: str | None
    target: float
    """The last that was in force; nan if unknown."""
    cadence: str | None
    world_size: int
    first: int
    """Its first step that has a record."""
    last: int
    steps: int
    """From the first to the last, those that were not measured included."""
    measured: int
    began: float | None
    """Unix time."""
    seconds: float
    state: str
    """``"ended"``, ``"unfinished"`` (it has not said that it is over: it goes on, or was killed) or ``"unknown"``."""
    resumed: tuple[int, ...]
    """First steps of the processes that went on with it."""
    changed: tuple[Setting, ...]
    """Settings of the optimizer that became others on the way."""
    notices: tuple[str, ...]


def about(run: Run) -> About:
    """What run it is, from the first lines of its processes and from the steps that it has.

    Example:
        >>> from pathlib import Path
        >>> about(Run(Path("runs/one/stepguard.jsonl"), "one")).state
        'unknown'
    """
    guards = guard_starts(run)
    start = (guards or run.starts or [{}])[-1]
    settings = start.get("settings") or {} if guards else {}
    groups = start.get("groups") or [{}]
    steps = [rows[end].step for rows in (run.readings, run.collapses, run.events) if len(rows) for end in (0, -1)]
    first, last = min(steps, default=0), max(steps, default=-1)
    times = np.array(list(run.times.values()), dtype=np.float64)
    times = times[times > 0]
    begun = [float(s["time"]) for s in run.starts if "time" in s] or [float(times.min())] if len(times) else []
    return About(
        name=run.name,
        path=str(run.path),
        model=start.get("model"),
        parameters=start.get("parameters"),
        optimizer=start.get("optimizer"),
        hyper={name: groups[0][name] for name in _TOLD if groups[0].get(name) is not None},
        groups=len(groups),
        action=settings.get("action") or _action(run),
        target=last_known(column(run.readings, "target")),
        cadence=None if settings.get("cadence") is None else str(settings["cadence"]),
        world_size=int(start.get("world_size") or 1),
        first=first,
        last=last,
        steps=last - first + 1,
        measured=len(run.readings),
        began=begun[0] if begun else None,
        seconds=float(times.max()) - begun[0] if begun else 0.0,
        state=("ended" if run.ended else "unfinished") if run.starts else "unknown",
        resumed=resumed_at(run),
        changed=changed_settings(run),
        notices=tuple(run.notices),
    )


def _action(run: Run) -> str | None:
    """What the readings tell of it, where no first line does."""
    scale = column(run.readings, "scale")
    known = scale[np.isfinite(scale)]
    if not len(known):
        return None
    return "drive" if (known > 1).any() else "clamp" if (known < 1).any() else "observe"
