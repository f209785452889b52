"""Runs made of readings by hand: calm ones, but for what a test changes."""

import math
from pathlib import Path

from stepguard.records import Reading, Run

CALM = {
    "lr": 0.1, "tau": 0.1, "gradient_norm": 1.0, "sensitivity": 2.0, "weight_norm": 10.0, "loss": 0.5, "loss_max": 3.0,
    "samples": 64, "r_times_median": 1.5, "inputs": 64, "input_norm": 4.0, "input_norm_max": 5.0, "scale": 1.0,
}  # fmt: skip


def run_of(*changes, steps=100, groups=None, target=1.0):
    """Calm readings, but for what functions from a step to some fields say."""
    run = Run(Path("stepguard.jsonl"))
    start = {"writes": "guard", "time": 0.0, "optimizer": "SGD", "groups": [{"lr": 0.1, **(groups or {})}]}
    run.starts.append(start)
    before = None
    for step in range(steps):
        wobble = 1 + 0.1 * math.sin(7 * step)
        values = {**CALM, "tau": CALM["tau"] * wobble, "loss": CALM["loss"] * wobble}
        for change in changes:
            values.update(change(step, values) or {})
        r = values["tau"] * values.pop("sensitivity")
        apart, scale = values.pop("r_times_median"), values.pop("scale")
        made = Reading(
            step=step, r=r, rho=values["tau"] / r if r else math.inf, spread=math.pi * r, scale=scale, target=target,
            lr_applied=scale * values["lr"], r_median=None if apart is None else r / apart, **values,
            lr_before=before and before.lr, tau_before=before and before.tau,
        )  # fmt: skip
        run.readings.append(made)
        run.times.update({step: float(step)})
        before = made
    return run


def from_step(step, **values):
    return lambda now, _: values if now >= step else None


def at_step(step, **values):
    return lambda now, _: values if now == step else None


def times(step, factor, *names, until=10**9):
    return lambda now, v: {n: v[n] * factor for n in names} if step <= now < until else None


def growing(step, rate, *names):
    return lambda now, v: {n: v[n] * rate ** (now - step) for n in names} if now >= step else None
