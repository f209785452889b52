from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from stepguard.records import Run

_TOLD = ("momentum", "betas", "weight_decay", "eps", "alpha")
"""Settings that one process may have otherwise than the one before."""


class Setting(NamedTuple):
    """A setting of the optimizer that was changed, seen at a step."""

    step: int
    name: str
    before: float
    now: float


def guard_starts(run: Run) -> list[dict[str, Any]]:
    """The first lines of guards."""
    return [start for start in run.starts if start.get("writes", "guard") == "guard"]


def resumed_at(run: Run) -> tuple[int, ...]:
    """First steps of the processes that went on with a run."""
    begun = [float(start.get("time", math.inf)) for start in guard_starts(run) or run.starts][1:]
    if not begun:
        return ()
    steps = np.array(sorted(run.times), dtype=np.int64)
    times = np.array([run.times[step] for step in steps.tolist()])
    firsts = (np.flatnonzero(times >= at) for at in begun)
    return tuple(dict.fromkeys(int(steps[places[0]]) for places in firsts if len(places)))


def changed_settings(run: Run) -> tuple[Setting, ...]:
    """Settings of the optimizer that became others, on the way or from one process to the next, in order."""
    told = list(_on_the_way(run))
    return tuple(sorted([*told, *_between_processes(run, told)]))


def _on_the_way(run: Run) -> Iterator[Setting]:
    for event in run.events:
        if event.kind == "changed" and event.data and event.data.keys() >= {"name", "before", "now"}:
            name, before, now = (event.data[key] for key in ("name", "before", "now"))
            yield Setting(event.step, str(name), float(before), float(now))


def _between_processes(run: Run, told: list[Setting]) -> Iterator[Setting]:
    groups = [start["groups"][0] if start.get("groups") else {} for start in guard_starts(run)]
    for step, before, now in zip(resumed_at(run), groups, groups[1:], strict=False):
        old, new = dict(_numbers(before)), dict(_numbers(now))
        old |= {setting.name: setting.now for setting in told if setting.step < step and setting.name in old}
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                yield Setting(step, name, old[name], new[name])


def _numbers(group: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name in _TOLD:
        value = group.get(name)
        if name == "betas" and value:
            yield from zip(("beta1", "beta2"), map(float, value), strict=False)
        elif isinstance(value, (int, float)):
            yield name, float(value)
