"""What a guarded step costs beside a plain one, on the demo's models.

python -m benchmarks.step_cost        # about a minute on one core

Plain and guarded steps alternate in one process; medians and their ratio.
"""

import argparse
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import stepguard
from stepguard.cli.spike.digits import digits_in_order
from stepguard.cli.spike.models import MODELS

BATCH = {"mlp": 64}  # the others train on the full batch


def measure(name: str, steps: int) -> tuple[float, float]:
    """Median seconds of a plain and of a guarded step."""
    data = digits_in_order()
    x, y = data.train_x_NP[: BATCH.get(name)], data.train_y_N[: BATCH.get(name)]
    models = [MODELS[name](), MODELS[name]()]
    optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in models]
    seconds: tuple[list[float], list[float]] = ([], [])
    with stepguard.attach(models[1], optimizers[1], strict=True):
        for step in range(steps + 3):
            for model, optimizer, times in zip(models, optimizers, seconds, strict=True):
                started = time.perf_counter()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                if step >= 3:  # the first ones warm up
                    times.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    version = sys.version.split()[0]
    print(f"torch {torch.__version__}, {options.threads} thread(s), {platform.machine()}, Python {version}\n")
    print("| model | plain, ms | guarded, ms | ratio |\n|---|---|---|---|")
    for name in MODELS:
        plain, guarded = measure(name, options.steps)
        print(f"| {name} | {1e3 * plain:.2f} | {1e3 * guarded:.2f} | {guarded / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
