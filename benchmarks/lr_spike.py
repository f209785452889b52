"""Protocols A1 and A2 of "Ghosts of Softmax" (arXiv 2603.13552): training through a learning-rate spike.

    python -m benchmarks.lr_spike a1      # the MLP, spike held to the end (about 2 minutes on 2 cores)
    python -m benchmarks.lr_spike a2      # transformer, MLP+LN, CNN+BN (an hour or more; --models and --only pick)

Prints Markdown tables. The largest r really taken is not the guard's own: a float64 Jacobian-vector product by
torch.func.jvp of the parameters' difference over each step, on what the guard had measured.
"""

import argparse
import copy
import math
import statistics
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from benchmarks.environment import begin
from stepguard.cli.spike.digits import Digits, digits_in_order, digits_stratified
from stepguard.cli.spike.models import MODELS
from stepguard.cli.spike.training import Run, Spike, batches, train

SPIKE_AT = 50


class Outcome(NamedTuple):
    before: float
    lowest: float
    final: float
    asked_at_spike: float
    largest_taken: float


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def exact_r(model: nn.Module, old: dict, new: dict, x: torch.Tensor) -> float:
    """r of the move old -> new in float64, independent of the guard."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():  # func.jvp refuses BatchNorm's in-place averages; training does not read them
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = module.num_batches_tracked = None
    at = {n: p.double() for n, p in old.items()}
    u = {n: new[n].double() - at[n] for n in at}
    _, slopes = torch.func.jvp(lambda p: torch.func.functional_call(twin, p, (x.double(),)), (at,), (u,))
    return float((slopes.amax(-1) - slopes.amin(-1)).max() / math.pi)


@torch.no_grad()
def accuracy_by_batch(model: nn.Module, data: Digits) -> float:
    """Percent of the test set that is right where BatchNorm takes the test set's own statistics."""
    twin = copy.deepcopy(model)
    return 100 * (twin(data.test_x_NP).argmax(-1) == data.test_y_N).float().mean().item()


def outcome(run: Run, whole_set: bool = False) -> Outcome:
    torch.manual_seed(run.seed)
    built, make = [], run.model
    old = parameters(make())

    def build() -> nn.Module:
        built.append(make())
        return built[0]

    start = run.spike.start if run.spike else SPIKE_AT
    x_all = run.data.train_x_NP
    run = run._replace(model=build, forward=(lambda m: m(x_all)) if whole_set else None)
    accuracies, asked, largest = [], math.nan, 0.0
    for frame, (x, _) in zip(train(run), batches(run), strict=False):
        new = parameters(built[0])
        largest = max(largest, exact_r(built[0], old, new, x_all if whole_set else x))
        old = new
        accuracies.append(frame.accuracy)
        if frame.step == start and frame.reading:
            asked = frame.reading.r
    after = accuracies[start:]
    return Outcome(accuracies[start - 1], min(after), after[-1], asked, largest)


def median(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(statistics.median(values) for values in zip(*outcomes, strict=True)))


def rows(runs: dict[str, dict], seeds: int, make, label: str, only: str) -> None:
    """Run every named variant over the seeds and print one line each."""
    runs = {name: changes for name, changes in runs.items() if only in name}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=len(runs) * seeds)
        for name, changes in runs.items():
            results = []
            for seed in range(seeds):
                progress.update(task, description=f"{label}: {name}, seed {seed}")
                results.append(outcome(make(seed)._replace(**changes), whole_set="training set" in name))
                progress.advance(task)
            m = median(results)
            worst = max(r.largest_taken for r in results)
            print(
                f"| {label} | {name} | {m.before:.1f} | {m.lowest:.1f} | {m.final:.1f} "
                f"| {m.asked_at_spike:.3g} | {worst:.6g} |",
                flush=True,
            )


def header(seeds: int) -> None:
    print(f"Medians of {seeds} seeds; the last column is the largest over all seeds and steps.\n")
    print("| run | guard | before | lowest after | final | r asked at the spike | largest r taken (float64) |")
    print("|---|---|---|---|---|---|---|")


def a1(seeds: int, factor: float, only: str) -> None:
    spike = Spike(factor, SPIKE_AT)
    clamp = {"spike": spike, "action": "clamp"}
    variants = {
        "no spike": {},
        "plain": {"spike": spike},
        "clipped at 1": {"spike": spike, "clip": 1.0},
        "guarded, radius over the training set": clamp,
        "guarded, radius over the batch": clamp,
        "guarded, batch, target 0.5": {**clamp, "target": 0.5},
        "guarded, batch, target 2": {**clamp, "target": 2.0},
    }
    header(seeds)
    for lr in (1e-4, 1e-3, 1e-2):
        rows(
            variants,
            seeds,
            lambda seed, lr=lr: Run(
                MODELS["mlp"], digits_stratified(seed), seed, lr, 200, batch_size=64, clamp_to="limit"
            ),
            f"{lr:g}",
            only,
        )


def a2(seeds: int, factor: float, models: list[str], only: str, by_batch: bool) -> None:
    once, held = Spike(factor, SPIKE_AT, 1), Spike(factor, SPIKE_AT)
    variants = {
        "no spike": {},
        "one step, plain": {"spike": once},
        "one step, clipped at 1": {"spike": once, "clip": 1.0},
        "one step, guarded": {"spike": once, "action": "clamp"},
        "held, plain": {"spike": held},
        "held, clipped at 1": {"spike": held, "clip": 1.0},
        "held, guarded": {"spike": held, "action": "clamp"},
        "held, guarded, target 0.5": {"spike": held, "action": "clamp", "target": 0.5},
    }
    data = digits_in_order()
    header(seeds)
    evaluate = accuracy_by_batch if by_batch else None
    for name in models:
        run = Run(MODELS[name], data, 0, 0.015, 200, evaluate=evaluate, clamp_to="limit")
        rows(variants, seeds, lambda seed, run=run: run._replace(seed=seed), name, only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=["a1", "a2"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--factor", type=float, default=1e4, help="the learning rate is multiplied by this")
    parser.add_argument("--models", nargs="+", default=["transformer", "mlp-ln", "cnn-bn"], choices=list(MODELS))
    parser.add_argument("--only", default="", metavar="TEXT", help="only the runs whose name has this text")
    parser.add_argument("--batch-statistics", action="store_true", help="a2: evaluate BatchNorm on the test set's own")
    parser.add_argument("--threads", type=int, default=1, help="small models lose by more (default 1)")
    options = parser.parse_args()
    begin(options.threads)
    print(f"\nProtocol {options.protocol.upper()}, learning rate x{options.factor:g} from step {SPIKE_AT}.")
    if options.protocol == "a1":
        a1(options.seeds, options.factor, options.only)
    else:
        a2(options.seeds, options.factor, options.models, options.only, options.batch_statistics)


if __name__ == "__main__":
    main()
