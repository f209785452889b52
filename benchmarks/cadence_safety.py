"""Does a step get through unmeasured that should not? The true r of every step, beside a guard that measures few.

python -m benchmarks.cadence_safety                 # some ten minutes on two cores
python -m benchmarks.cadence_safety --seed 100      # on runs that its constants were not chosen by
python -m benchmarks.cadence_safety --cadence 10    # how a blind cadence does

Spikes of x3 to x10,000 (one step, ten, held, ramps, in the head alone), learning rates from 0.3 to 100 times the usual,
warm restarts and warm-ups, and data that changes in the middle. A step is a miss if what was really made of it has an r
more than 5% over the target; each is listed.
"""

import argparse
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import stepguard
from benchmarks.environment import begin
from benchmarks.scenarios import Made, scenarios, train
from stepguard.records import Memory

KINDS = {
    "spike": "spikes",
    "rate": "learning rates x0.3 to x100",
    "restarts": "warm restarts, warm-ups",
    "data": "other data from the middle on",
}


class Outcome(NamedTuple):
    name: str
    kind: str
    true_r: list[float]
    measured: list[int]
    predicted: list[int]
    clamped: int


def true_r(made: Made) -> float:
    """Of the step that was really made, by a forward-mode pass of its own."""
    now = {name: p.detach() for name, p in made.model.named_parameters()}
    update = {name: now[name] - old for name, old in made.old.items()}
    if not all(u.isfinite().all() for u in update.values()):
        return float("inf")

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        buffers = {name: b.clone() for name, b in made.model.named_buffers()}
        found: Tensor = torch.func.functional_call(made.model, {**parameters, **buffers}, (made.x,))
        return found

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return float(stepguard.step_ratio(stepguard.logit_slopes(logits, made.old, update)).max())


def run(index: int, cadence: str | int, seed: int) -> Outcome:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    scenario, memory = scenarios()[index], Memory()
    scenario = scenario._replace(seed=scenario.seed + seed)

    def begin(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        # A run at the limit is the harder one: back to calm, most spikes would be over at once.
        stepguard.attach(
            model,
            optimizer,
            cadence=cadence,  # type: ignore[arg-type]
            clamp_to="limit",
            recorders=[memory],
            strict=True,
        )

    found = [true_r(made) for made in train(scenario, begin)]
    by = {kind: [r.step for r in memory.readings if (r.estimator == "prediction") == kind] for kind in (False, True)}
    return Outcome(scenario.name, scenario.kind, found, by[False], by[True], sum(r.scale < 1 for r in memory.readings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cadence", default="auto", help='"auto", "every" or a number of steps')
    parser.add_argument("--seed", type=int, default=0, help="other weights and batches")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    cadence = int(options.cadence) if options.cadence.isdigit() else options.cadence
    begin(1)
    print(f'cadence="{cadence}", seed {options.seed}\n')
    todo, outcomes = range(len(scenarios())), []
    with ProcessPoolExecutor(options.jobs) as pool:
        for i, outcome in enumerate(pool.map(partial(run, cadence=cadence, seed=options.seed), todo), 1):
            outcomes.append(outcome)
            print(f"\r{i} of {len(todo)} runs", end="" if i < len(todo) else "\n", file=sys.stderr, flush=True)
    print(
        "| runs | steps | measured | by prediction | shortened | over the target by more than 5% |\n" + "|---" * 6 + "|"
    )
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    by_kind["all"] = outcomes
    for kind, found in by_kind.items():
        steps = sum(len(o.true_r) for o in found)
        measured, predicted = (sum(len(getattr(o, f)) for o in found) for f in ("measured", "predicted"))
        misses = sum(not r <= 1.05 for o in found for r in o.true_r)
        print(
            f"| {len(found)} {KINDS.get(kind, 'in all')} | {steps:,} | {measured / steps:.1%} | {predicted} "
            f"| {sum(o.clamped for o in found):,} | {misses} |"
        )
    for outcome in outcomes:
        for step, r in enumerate(outcome.true_r):
            if not r <= 1.05:
                print(f"\n{outcome.name}: step {step}, r = {r:.3g}")
    calm = [o for o in outcomes if max(o.true_r) < 0.25]
    steps = sum(len(o.true_r) for o in calm)
    print(f"\n{len(calm)} runs never came beyond 0.25: {sum(len(o.measured) for o in calm) / steps:.1%} measured.")


if __name__ == "__main__":
    main()
