from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from stepguard.diagnosis.columns import column, last_known
from stepguard.records import Run

_TOLD = ("lr", "momentum", "nesterov", "betas", "beta", "alpha", "eps", "weight_decay", "rho")
"""Settings of a parameter group that are worth a line."""


class Setting(NamedTuple):
    """One that was changed, seen at a step."""

    step: int
    name: str
    before: float
    now: float


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
    guards = [start for start in run.starts if start.get("writes", "guard") == "guard"]
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
        resumed=_resumed(run),
        changed=tuple(_changed(run)),
        notices=tuple(run.notices),
    )


def _changed(run: Run) -> Iterator[Setting]:
    for event in run.events:
        if event.kind == "changed" and event.data and event.data.keys() >= {"name", "before", "now"}:
            name, before, now = (event.data[key] for key in ("name", "before", "now"))
            yield Setting(event.step, str(name), float(before), float(now))


def _action(run: Run) -> str | None:
    """What the readings tell of it, where no first line does."""
    scale = column(run.readings, "scale")
    known = scale[np.isfinite(scale)]
    if not len(known):
        return None
    return "drive" if (known > 1).any() else "clamp" if (known < 1).any() else "observe"


def _resumed(run: Run) -> tuple[int, ...]:
    writers = [str(start.get("writes", "guard")) for start in run.starts]
    writer = "guard" if "guard" in writers else "monitor"
    begun = [float(s.get("time", math.inf)) for s, w in zip(run.starts, writers, strict=True) if w == writer][1:]
    if not begun:
        return ()
    steps = np.array(sorted(run.times), dtype=np.int64)
    times = np.array([run.times[step] for step in steps.tolist()])
    firsts = (np.flatnonzero(times >= at) for at in begun)
    return tuple(dict.fromkeys(int(steps[places[0]]) for places in firsts if len(places)))
