"""How good a forecast of r coming to its target is: said how long before, off by how much, and how often for nothing.

python -m benchmarks.forecast            # about ten minutes on one core

Runs whose schedule, or whose own growth, brings r to 1, and runs in which it does not come there. The guard observes
with the default cadence and knows the schedule; when r really first passed 1 is what a second, identical run measured
at every step.
"""

import argparse
import math
import re
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress

import stepguard
from benchmarks.environment import begin
from benchmarks.scenarios import TASKS, Rate, Scenario, train, warm_up
from stepguard.records import Memory

SCHEDULES: dict[str, Rate] = {
    "warm-up of 150 steps to x30": lambda step: 30 * warm_up(150)(step),
    "warm-up of 250 steps to x100": lambda step: 100 * warm_up(250)(step),
    "x1.02 a step": lambda step: 0.1 * 1.02**step,
    "half a cycle of 300 steps to x30": lambda step: 0.3 + 30 * 0.5 * (1 - math.cos(math.pi * min(step / 300, 1.0))),
    "steady, x1": lambda step: 1.0,
    "steady, x0.1": lambda step: 0.1,
    "cosine to 0": lambda step: 0.5 * (1 + math.cos(math.pi * min(step / 300, 1.0))),
}


class Told(NamedTuple):
    step: int
    foreseen: int


class Outcome(NamedTuple):
    told: list[Told]
    crossed: int | None
    steps: int


def run(scenario: Scenario) -> Outcome:
    memory, truth = Memory(), Memory()

    def watched(model, optimizer):
        stepguard.attach(
            model,
            optimizer,
            action="observe",
            schedule=lambda step: scenario.task.lr * scenario.factor(step),
            recorders=[memory],
        )

    def measured(model, optimizer):
        stepguard.attach(model, optimizer, action="observe", cadence="every", recorders=[truth])

    for attach in (watched, measured):
        for _ in train(scenario, attach):
            pass
    told = [
        Told(e.step, int(re.search(r"about step (\d+)", e.message)[1])) for e in memory.events if e.kind == "forecast"
    ]
    crossed = next((r.step for r in truth.readings if r.breach and r.step >= 20), None)
    early = any(r.breach for r in truth.readings if r.step < 20)
    return Outcome([] if early else told, None if early else crossed, scenario.task.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    begin(options.threads)
    print(
        "\n| schedule | runs | came to 1 | foretold | steps before | too late by, steps | for nothing |\n|" + "---|" * 7
    )
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name, rate in progress.track(SCHEDULES.items(), description="schedules"):
            found = [
                run(Scenario(f"{task}: {name}", "forecast", TASKS[task], rate, seed=seed))
                for task in TASKS
                for seed in range(options.seeds)
            ]
            print(row(name, found), flush=True)


def row(name: str, found: list[Outcome]) -> str:
    true = [(o.crossed, [t for t in o.told if t.step < o.crossed]) for o in found if o.crossed is not None]
    first = [(crossed, told[0]) for crossed, told in true if told]
    # What was foreseen for a step after the end of the run, or came true in the end, was not for nothing.
    vain = sum(1 for o in found if o.crossed is None for t in o.told if t.foreseen < o.steps)
    before, late = [c - t.step for c, t in first], [t.foreseen - c for c, t in first]
    return f"| {name} | {len(found)} | {len(true)} | {len(first)} | {spread(before)} | {spread(late)} | {vain} |"


def spread(values: list[int]) -> str:
    return f"{median(values):.0f} ({min(values)} to {max(values)})" if values else "-"


if __name__ == "__main__":
    main()
