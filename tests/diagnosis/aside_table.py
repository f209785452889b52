"""A table of the runs kept aside: ``python tests/diagnosis/aside_table.py [part of a name] [seeds]``."""

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from aside import ASIDE

from stepguard.records import read_runs

START_UP = 5
"""Steps at the beginning that may be over the target by themselves, where the cause comes later."""


class Found(NamedTuple):
    """What the records of a run hold, with nothing concluded from it."""

    first: int | None
    """The first step over the target."""
    r: float
    before: float
    """The largest r before the cause."""
    collapse: int | None
    """The first look at which a sample in a hundred has no headroom."""
    loss: tuple[float, float]
    """The last one before the cause, and the largest after it."""
    seconds: float

    def holds(self, scenario):
        begins, last = scenario.step, (scenario.step or 0) + scenario.tolerance
        if begins is None:
            return self.first is None or self.before <= 1.5
        seen = self.first if scenario.breach else self.collapse
        return seen is not None and begins <= seen <= last and (scenario.breach or self.first is None)


def found(scenario, seed):
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        scenario.run(Path(folder), seed)
        (run,) = read_runs(folder)
    seconds = time.perf_counter() - started
    begins = scenario.step if scenario.step is not None else len(run.times) and max(run.times) + 1
    over = [reading for reading in run.readings if reading.breach and reading.step >= min(START_UP, begins)]
    before = [reading for reading in run.readings if reading.step < begins]
    losses = [reading.loss for reading in run.readings if reading.step >= begins and reading.loss is not None]
    return Found(
        over[0].step if over else None,
        over[0].r if over else max(reading.r for reading in run.readings),
        max((reading.r for reading in before), default=0.0),
        next((look.step for look in run.collapses if look.collapsed), None),
        (before[-1].loss or 0.0 if before else 0.0, max(losses, default=0.0)),
        seconds,
    )


def table(part="", seeds=5, runs=ASIDE):
    for name, scenario in runs.items():
        if part not in name and part != scenario.cause:
            continue
        seen = [found(scenario, seed) for seed in range(seeds)]
        holds = sum(run.holds(scenario) for run in seen)
        print(f"{name}\n    {scenario.cause}, at {scenario.step}, within {scenario.tolerance}; {holds} of {seeds}")
        for run in seen:
            collapse = "" if run.collapse is None else f"; collapse at {run.collapse}"
            print(
                f"        first over {run.first}, r {run.r:.3g}, before {run.before:.3g}, "
                f"loss {run.loss[0]:.2g} then {run.loss[1]:.2g}, {run.seconds:.1f} s{collapse}",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    table(*sys.argv[1:2], *map(int, sys.argv[2:3]))
