"""How the cost of guarding grows: with parameters, with the batch, with the length of sequences.

python -m benchmarks.cost_growth                      # about half an hour on two cores
python -m benchmarks.cost_growth --only batch
python -m benchmarks.cost_growth --device cuda

GPTs with AdamW, measured as benchmarks.step_cost does. *Calm* is a step that is not measured, the usual one; the
others are steps that are. Memory is the peak of a run beyond that of a plain one, in copies of the parameters.
"""

import argparse
import copy
from statistics import median

import torch
from torch import nn

from benchmarks.environment import begin
from benchmarks.memory_use import peak_bytes
from benchmarks.networks import GPT
from benchmarks.step_cost import SETTLED, Case, Way, measure, tokens, training

WAYS = [
    Way("plain", None),
    Way("calm", {}),
    Way("secant", {"cadence": "every", "screen": True}),
    Way("forward", {"cadence": "every"}),
]


def case(name: str, layers: int, width: int, batch: int, length: int, steps: int) -> Case:
    return Case(
        name, lambda: GPT(layers, width, width // 32, 1024), lambda: tokens(batch, length, 1024), 1e-6, steps, "any"
    )


SWEEPS = {
    "parameters": [
        case("1M", 2, 128, 2, 64, 80),
        case("3M", 4, 224, 2, 64, 64),
        case("10M", 6, 352, 2, 64, 48),
        case("30M", 8, 544, 2, 64, 32),
        case("100M", 10, 896, 2, 64, 24),
    ],
    "batch": [case(str(batch), 4, 224, batch, 64, 48) for batch in (1, 4, 16, 64)],
    "sequence": [case(str(length), 4, 224, 2, length, 48) for length in (64, 256, 1024)],
}


def extra_memory(of: Case, device: str) -> dict[str, float]:
    """Peak of each way beyond the plain run's, in copies of the parameters."""
    torch.manual_seed(0)
    first = of.model().to(device)
    x, y = (t.to(device) for t in of.batch())
    size = sum(p.numel() * p.element_size() for p in first.parameters())

    def peak(way: Way) -> int:
        model = copy.deepcopy(first)
        return peak_bytes(lambda: steps(way, model), device)

    def steps(way: Way, model: nn.Module) -> None:
        step, _ = training(of, way, model, x, y, device)
        for _ in range(12):
            next(step)

    peaks = {way.name: peak(way) for way in WAYS}
    return {name: (p - peaks["plain"]) / size for name, p in peaks.items() if name != "plain"}


def row(of: Case, device: str) -> str:
    taken = measure(of, WAYS, SETTLED + of.steps, device)
    seconds = {name: median(way.seconds) for name, way in taken.items()}
    plain = seconds.pop("plain")
    memory = extra_memory(of, device)
    parameters = sum(p.numel() for p in of.model().parameters())
    cells = [of.name, f"{parameters / 1e6:.1f}M", f"{1e3 * plain:.1f}", f"{1e3 * (seconds['calm'] - plain):.2f}"]
    cells += [f"{s / plain:.2f}" for s in seconds.values()] + [f"{m:.2f}" for m in memory.values()]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    begin(options.threads, options.device)
    for name in options.only:
        print(
            f"\n| {name} | size | plain, ms | calm, ms more | calm / plain | secant / plain | forward / plain ", end=""
        )
        print("| memory: calm | secant | forward |\n|" + "---|" * 10)
        for of in SWEEPS[name]:
            print(row(of, options.device), flush=True)


if __name__ == "__main__":
    main()
