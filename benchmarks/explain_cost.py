"""What it costs to find out where a breach comes from, beside a plain step.

python -m benchmarks.explain_cost                 # two minutes on two cores
python -m benchmarks.explain_cost --only mlp gpt  # some of the models

Plain steps, measured steps and steps that are measured and explained take turns, all on the same batch; medians. The
peak is what a step holds beyond what was there before it, the forward and backward of training itself included.
"""

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepguard
from benchmarks.environment import begin
from benchmarks.memory_use import peak_bytes
from benchmarks.step_cost import CASES, Case
from stepguard.guard.culprits import Culprits

STEPS = {"mlp": 200}
WAYS = ("plain", "measured", "explained")


def measure(case: Case, steps: int) -> list[str]:
    """The table's row."""
    torch.manual_seed(0)
    model, (x, y) = case.model(), case.batch()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(steps + 3):
        for way in WAYS:
            started = time.perf_counter()
            step(model, x, y, way)
            if index >= 3:
                seconds[way].append(time.perf_counter() - started)
    plain, measured, explained = (median(seconds[way]) for way in WAYS)
    peaks = [peak_bytes(lambda way=way: step(model, x, y, way)) / 2**20 for way in WAYS]  # type: ignore[misc]
    return [
        case.name,
        f"{1e3 * plain:.1f}",
        f"{1e3 * (measured - plain):.1f}",
        f"{1e3 * (explained - measured):.1f}",
        f"{(explained - measured) / plain:.2f}",
        *(f"{peak:.0f}" for peak in peaks),
        f"{sum(4 * p.numel() for p in model.parameters()) / 2**20:.0f}",
    ]


def step(model: nn.Module, x: Tensor, y: Tensor, way: str) -> None:
    """One step of SGD; too short to change anything, so that all ways do the same work."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    guard = None
    if way != "plain":
        guard = stepguard.attach(model, optimizer, action="observe", target=1e-12, cadence="every", strict=True)
        guard._probe.estimator._measured = 10  # not one of the readings that are checked by a difference
        Culprits.wants = lambda self, step, r: way == "explained"  # type: ignore[method-assign]
    optimizer.zero_grad()
    F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    optimizer.step()
    if guard:
        guard.detach()
        assert guard.last and (guard.culprit is not None) == (way == "explained")
        assert not guard.culprit or abs(guard.culprit.remainder) < 1e-3 * guard.culprit.spread, guard.culprit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="models whose names begin so")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    begin(options.threads)
    print(
        "\n| model | plain step, ms | measuring, ms | explaining, ms | explaining / plain step "
        "| peak of a plain step, MiB | measured, MiB | explained, MiB | parameters, MiB |\n|" + "---|" * 9
    )
    for case in CASES:
        if case.name.startswith(tuple(options.only)) and case.on == "cpu":
            print("| " + " | ".join(measure(case, STEPS.get(case.name, options.steps))) + " |", flush=True)


if __name__ == "__main__":
    main()
