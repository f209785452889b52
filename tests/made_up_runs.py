"""Runs with records that are made up, so that what there is to say of them is known beforehand."""

import math
from pathlib import Path

from stepguard.records import CollapseReading, Culprit, Event, JsonLines, Reading, Run, breach_event

START = {
    "writes": "guard",
    "pid": 1,
    "time": 1000.0,
    "model": "Net",
    "parameters": 1234,
    "optimizer": "SGD",
    "groups": [{"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}],
    "settings": {"action": "observe", "target": 1.0, "cadence": "auto"},
}
CULPRIT = Culprit(
    step=40,
    r=20.0,
    spread=62.8,
    sample=5,
    position=[5],
    softmax="cross_entropy of Net",
    rising=1,
    falling=0,
    label=2,
    parameters={"head.weight": 70.0, "body.weight": -10.0},
    others=1.8,
    groups={"0": 61.8},
    layers={"head": 70.0, "body": -8.2},
    remainder=1.0,
)


def reading(step, r=0.3, lr=0.1, scale=1.0, target=1.0, **more):
    """A reading whose update has the length r, so that the sensitivity is 1."""
    return Reading(
        step, r, tau=r, rho=1.0, spread=math.pi * r, scale=scale, lr=lr, lr_applied=scale * lr, target=target, **more
    )


def look(step, headroom, **more):
    values = {"samples": 64, "collapse": 0.0, "dtype": "float32", "classes": 10, **more}
    return CollapseReading(
        step, headroom_nats=headroom, headroom_min=headroom - 1, headroom_median=headroom + 1, **values
    )


def run_of(readings=(), events=(), looks=(), start=START, name="one"):
    """A run that has been read, without a file."""
    run = Run(Path(f"runs/{name}/stepguard.jsonl"), name, ended=True)
    if start:
        run.starts.append(start)
    for rows, values in ((run.readings, readings), (run.collapses, looks)):
        for value in values:
            rows.append(value)
            run.times.update({value.step: 1000.0 + value.step})
    run.events = [*events]
    return run


def jump(action="observe", steps=60):
    """Readings and events of a run whose learning rate is a hundred times as large at step 40: r = 20 there."""
    scale = 1.0 if action == "observe" else 0.05
    readings = [reading(s, r=0.2 + 0.001 * s, gradient_norm=2.0, loss=0.5, samples=64) for s in range(steps)]
    readings[40] = reading(40, r=20.0, lr=10.0, scale=scale, gradient_norm=2.0, loss=0.5, samples=64)
    return readings, [breach_event(readings[40]), CULPRIT.event()]


def jumped(action="observe", name="jumped"):
    readings, events = jump(action)
    start = {**START, "settings": {**START["settings"], "action": action}}
    return run_of(readings, events, [look(s, 12.0 - 0.1 * s) for s in range(0, 60, 10)], start, name)


def calm(name="calm", r=0.25):
    return run_of([reading(s, r=r) for s in range(60)], name=name)


def write(folder, readings=(), events=(), looks=(), end=True, start=START):
    """The records of a run, as it would have left them."""
    about = {key: value for key, value in start.items() if key not in ("time", "pid")}
    lines = JsonLines(folder, about)
    for value in sorted([*readings, *looks, *events], key=lambda value: value.step):
        (lines.event if isinstance(value, Event) else lines.reading)(value)
    if end:
        lines.close()
    else:
        lines._file.close()  # as a killed process leaves it
