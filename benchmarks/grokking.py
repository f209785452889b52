"""The experiments of Grokking at the Edge of Numerical Stability (arXiv 2501.04697), with our numbers.

python -m benchmarks.grokking cures              # which perpGrad makes a network grok: some minutes on two cores
python -m benchmarks.grokking collapse           # collapse, its forecast and its cure on trigger: a quarter of an hour
python -m benchmarks.grokking collapse --picture docs/images/collapse.png

Addition modulo 113, two fifths of the pairs to train on, full batch, one step an epoch; accuracies after the step.
"""

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import stepguard
from benchmarks.environment import begin
from stepguard.cli.grokking.addition import addition, mlp
from stepguard.records import CollapseReading, Event, Memory

adamw = partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.99), eps=1e-25, weight_decay=0.0)
slow_adamw = partial(adamw, lr=5e-4, eps=1e-30)
# The published wrapper let go of the betas, eps and momentum that it was given, except for the momentum of 0.8.
adamw_as_published = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.0)
sgd = partial(torch.optim.SGD, lr=10.0, momentum=0.8)
MODULUS = 113


def cross_entropy(z: torch.Tensor, y: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.cross_entropy(z.to(dtype), y)


half_cross_entropy = partial(cross_entropy, dtype=torch.float16)


class Run(NamedTuple):
    epochs: int
    optimizer: Callable[..., torch.optim.Optimizer] = adamw
    perp_grad: dict[str, Any] | None = None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy
    dtype: torch.dtype = torch.float32
    on_warning: str | None = None
    cadence: int | None = None
    seed: int = 42
    evaluate_every: int = 1


class Point(NamedTuple):
    epoch: int
    train: float
    test: float


class Outcome(NamedTuple):
    points: list[Point]
    readings: list[CollapseReading]
    events: list[Event]

    def test_at(self, epoch: int) -> float:
        return next(p.test for p in self.points if p.epoch == epoch)

    def passes(self, accuracy: float) -> int | None:
        """Epoch from which on the test accuracy has once been as high as this."""
        return next((p.epoch for p in self.points if p.test >= accuracy), None)


def train(run: Run) -> Outcome:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    data, model = addition(MODULUS), mlp(MODULUS).to(run.dtype)
    pairs, points, memory = data.pairs_NP.to(run.dtype), [], Memory()
    optimizer = run.optimizer(model.parameters())
    settings: dict[str, Any] = {"on_warning": run.on_warning, "recorders": [memory]}
    monitor = stepguard.monitor_collapse(model, optimizer, cadence=run.cadence, **settings) if run.cadence else None
    for epoch in range(run.epochs + 1):
        batch = data.train_K[torch.randperm(len(data.train_K))]
        optimizer.zero_grad()
        run.loss(model(pairs[batch]), data.sums_N[batch]).backward()
        if run.perp_grad is not None:
            stepguard.perp_grad_(model.parameters(), **run.perp_grad)
        optimizer.step()
        if epoch % run.evaluate_every == 0:
            with torch.no_grad():
                right = (model(pairs).argmax(-1) == data.sums_N).double()
            points.append(Point(epoch, 100 * right[data.train_K].mean().item(), 100 * right[data.test_K].mean().item()))
    if monitor:
        monitor.detach()
    return Outcome(points, memory.collapses, memory.events)


CURES = {
    "AdamW": Run(300),
    "perpGrad per tensor, norm restored": Run(200, adamw_as_published, perp_grad={}),
    "the same, betas and eps of the run above": Run(200, perp_grad={}),
    "perpGrad per tensor": Run(200, adamw_as_published, perp_grad={"restore_norm": False}),
    "perpGrad over all (equation 12)": Run(200, adamw_as_published, perp_grad={"over": "all", "restore_norm": False}),
    "perpGrad + SGD, StableMax, float64": Run(
        480, sgd, perp_grad={}, loss=stepguard.stablemax_cross_entropy, dtype=torch.float64
    ),
}
PUBLISHED = (
    ("perpGrad per tensor, norm restored", 96.2, 100),
    ("perpGrad per tensor, norm restored", 99.5, 120),
    ("perpGrad per tensor", 78.6, 100),
    ("perpGrad per tensor", 98.4, 120),
    ("perpGrad over all (equation 12)", 84.6, 100),
    ("perpGrad over all (equation 12)", 99.8, 120),
    ("perpGrad + SGD, StableMax, float64", 80.7, 320),
)
"""Test accuracies of the paper's code, and at which epoch."""
COLLAPSE = {
    "float32": Run(6000, slow_adamw, cadence=10, evaluate_every=10),
    "float32, cured": Run(6000, slow_adamw, cadence=10, on_warning="perp_grad", evaluate_every=10),
    "float16 loss": Run(1600, slow_adamw, loss=half_cross_entropy, cadence=10, evaluate_every=10),
    "float16 loss, cured": Run(
        6000, slow_adamw, loss=half_cross_entropy, cadence=10, on_warning="perp_grad", evaluate_every=10
    ),
}
PICTURED = {"AdamW": "float32", "AdamW, perpGrad on warning": "float32, cured"}
AT = (50, 90, 100, 110, 120, 130, 200, 300, 320, 340, 400, 480)


def cures(seeds: list[int], jobs: int) -> None:
    runs = {(name, seed): run._replace(seed=seed) for name, run in CURES.items() for seed in seeds}
    outcomes = dict(zip(runs, _all(list(runs.values()), jobs), strict=True))
    print(f"Test accuracy by epoch, median of seeds {', '.join(map(str, seeds))}\n")
    print("| run | " + " | ".join(map(str, AT)) + " |\n|" + "---|" * (len(AT) + 1))
    for name, run in CURES.items():
        cells = [
            f"{median(outcomes[name, s].test_at(epoch) for s in seeds):.1f}" if epoch <= run.epochs else ""
            for epoch in AT
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| run | lowest and highest of the seeds |\n|---|---|")
    for name, epoch in (("perpGrad per tensor, norm restored", 130), ("AdamW", 300)):
        values = [outcomes[name, s].test_at(epoch) for s in seeds]
        print(f"| {name}, epoch {epoch} | {min(values):.2f}, {max(values):.2f} |")
    print("\n| run | test accuracy | their epoch | ours, median | lowest and highest |\n|---|---|---|---|---|")
    for name, accuracy, theirs in PUBLISHED:
        epochs = [outcomes[name, s].passes(accuracy) or CURES[name].epochs for s in seeds]
        print(f"| {name} | {accuracy} | {theirs} | {median(epochs):.0f} | {min(epochs)}, {max(epochs)} |")


def collapse(seeds: list[int], jobs: int, picture: str | None) -> None:
    runs = {(name, seed): run._replace(seed=seed) for seed in seeds for name, run in COLLAPSE.items()}
    outcomes = dict(zip(runs, _all(list(runs.values()), jobs), strict=True))
    print(
        "| run | seed | first sample | warning | forecast then | onset (1%) | peak collapse, % | peak zero losses, % "
        "| cure on, off | test accuracy |\n|" + "---|" * 10
    )
    for (name, seed), outcome in outcomes.items():
        when = {e.kind: e for e in reversed(outcome.events)}
        warning, onset = when.get("warning"), when.get("onset")
        forecast = warning.reading.forecast if warning and isinstance(warning.reading, CollapseReading) else None
        first = next((r.step for r in outcome.readings if r.collapse > 0), None)
        switches = ", ".join(str(e.step) for e in outcome.events if e.kind.startswith("cure"))
        peak, zero = (100 * max(getattr(r, f) or 0 for r in outcome.readings) for f in ("collapse", "zero_terms"))
        end = outcome.points[-1]
        print(
            f"| {name} | {seed} | {_or_dash(first)} | {_or_dash(warning and warning.step)} | {_or_dash(forecast)} "
            f"| {_or_dash(onset and onset.step)} | {peak:.2f} | {zero:.2f} | {switches or '-'} "
            f"| {end.test:.1f}% at {end.epoch} |"
        )
    if picture:
        from benchmarks.collapse_picture import save_picture

        shown = {label: outcomes[name, seeds[0]] for label, name in PICTURED.items()}
        save_picture(
            picture,
            "Addition modulo 113, AdamW at 5e-4, loss in float32",
            {label: outcome.readings for label, outcome in shown.items()},
            shown["AdamW"].events,
            {label: [(p.epoch, p.test) for p in outcome.points] for label, outcome in shown.items()},
        )


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _all(runs: list[Run], jobs: int) -> list[Outcome]:
    """Train them side by side, and say how far it is."""
    outcomes = []
    with ProcessPoolExecutor(jobs) as pool:
        for i, outcome in enumerate(pool.map(train, runs), 1):
            outcomes.append(outcome)
            print(f"\r{i} of {len(runs)} runs", end="" if i < len(runs) else "\n", file=sys.stderr, flush=True)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cures", "collapse"))
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--picture", help="where to draw collapse to")
    options = parser.parse_args()
    seeds = options.seeds or ([42, 0, 1, 2, 3] if options.what == "cures" else [42, 0, 1])
    begin(1)
    print()
    if options.what == "cures":
        cures(seeds, options.jobs)
    else:
        collapse(seeds, options.jobs, options.picture)


if __name__ == "__main__":
    main()
