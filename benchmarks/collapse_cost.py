"""What watching for softmax collapse costs: steps with a monitor beside plain ones.

python -m benchmarks.collapse_cost        # about two minutes on one core

Plain and watched steps alternate in one process. The cadence is the monitor's own choice; the ratio is that of all
steps after the first few hundred, those with a reading and those without.
"""

import argparse
import copy
import statistics
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import stepguard
from benchmarks.environment import begin
from stepguard.cli.grokking.addition import mlp as addition_mlp
from stepguard.cli.spike.models import MODELS
from stepguard.records import Memory


class Case(NamedTuple):
    model: nn.Module
    samples: int
    inputs: int
    classes: int
    steps: int


def cases() -> dict[str, Case]:
    wide = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32_000))
    return {
        "digits, 64 samples": Case(MODELS["mlp"](), 64, 64, 10, 6000),
        "digits, transformer": Case(MODELS["transformer"](), 1438, 64, 10, 1500),
        "addition modulo 113": Case(addition_mlp(113), 5107, 226, 113, 400),
        "32,000 classes, 512 tokens": Case(wide, 512, 256, 32_000, 200),
    }


def measure(case: Case) -> tuple[float, float, float, Memory]:
    """Seconds of a plain step, of a reading, and the ratio of all watched steps to all plain ones."""
    x, y = torch.randn(case.samples, case.inputs), torch.randint(0, case.classes, (case.samples,))
    models = [case.model, copy.deepcopy(case.model)]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4) for m in models]
    seconds: tuple[list[float], list[float]] = ([], [])
    memory = Memory()
    with stepguard.monitor_collapse(models[1], optimizers[1], recorders=[memory], strict=True) as monitor:
        for _ in range(case.steps):
            for model, optimizer, times in zip(models, optimizers, seconds, strict=True):
                started = time.perf_counter()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                times.append(time.perf_counter() - started)
        reading = statistics.median(monitor._budget._readings)
    settled = case.steps // 4
    plain, watched = (sum(times[settled:]) for times in seconds)
    return statistics.median(seconds[0]), reading, watched / plain, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    begin(options.threads)
    print()
    print(
        "| model | plain step, ms | reading, ms | every | share reported | watched / plain |\n|---|---|---|---|---|---|"
    )
    for name, case in cases().items():
        plain, reading, ratio, memory = measure(case)
        last = memory.collapses[-1]
        print(
            f"| {name} | {1e3 * plain:.2f} | {1e3 * reading:.1f} | {last.every} | {last.cost_share or 0:.2%} "
            f"| {ratio:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
