"""What guarding costs: steps with a guard beside plain ones, as ratios.

python -m benchmarks.step_cost                       # about a quarter of an hour on two cores
python -m benchmarks.step_cost --only mlp gpt        # some of the models
python -m benchmarks.step_cost --device cuda         # the same on a GPU, and the paper's ResNet-18 of width 64

A plain run and one for each way of guarding take turns, a few steps each, in one process, all from the same weights.
The first steps are left out; of the others the median step is compared, and the whole time, in which dear steps count.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepguard
from benchmarks.environment import begin
from benchmarks.networks import GPT, resnet18
from stepguard.cli.spike.models import mlp
from stepguard.records import Memory

SETTLED = 24
"""Steps until the first readings, which are dense, and their checks are over."""


_TURN = 8
"""Steps before it is another one's turn: a guard's budget goes by the time between two steps of its own."""


class Case(NamedTuple):
    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    lr: float
    steps: int
    on: str = "cpu"
    half: bool = False


class Way(NamedTuple):
    """A way of training, and what it may multiply the learning rate by."""

    name: str
    guard: dict[str, Any] | None
    clip: bool = False
    factor: Callable[[int], float] = lambda step: 1.0
    by_difference: bool = False


def tokens(batch: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    x = torch.randint(vocabulary, (batch, length + 1))
    return x[:, :-1], x[:, 1:]


def pictures() -> tuple[Tensor, Tensor]:
    return torch.randn(128, 3, 32, 32), torch.randint(10, (128,))


CASES = [
    Case("mlp", mlp, lambda: (torch.rand(64, 64), torch.randint(10, (64,))), 1e-4, 4000),
    Case("resnet-18, width 16", lambda: resnet18(16), pictures, 1e-5, 136),
    Case("gpt, 4 x 256, vocabulary 8k", lambda: GPT(4, 256, 8, 8192), lambda: tokens(4, 128, 8192), 1e-5, 136),
    Case("gpt-2's head, 50k", lambda: GPT(1, 768, 12, 50257), lambda: tokens(2, 128, 50257), 1e-5, 72),
    Case("resnet-18, width 64", lambda: resnet18(64), pictures, 1e-5, 300, "cuda"),
    Case("gpt-2 small, bf16", lambda: GPT(12, 768, 12, 50257), lambda: tokens(4, 512, 50257), 1e-6, 200, "cuda", True),
]
WAYS = [
    Way("plain", None),
    Way("clipping by norm", None, clip=True),
    Way("default, calm", {}),
    Way("every step, forward mode", {"cadence": "every"}),
    Way("every step, screened by a secant", {"cadence": "every", "screen": True}),
    Way("every step, central difference", {"cadence": "every"}, by_difference=True),
]
STORMS = [
    Way("plain", None),
    Way("default, rate x1,000", {}, factor=lambda step: 1e3),
    Way("default, x10,000 held from the middle", {}, factor=lambda step: 1.0 if step % 60 < 30 else 1e4),
]


class Taken(NamedTuple):
    seconds: list[float]
    readings: int
    share: float | None


def measure(case: Case, ways: list[Way], steps: int, device: str) -> dict[str, Taken]:
    torch.manual_seed(0)
    first = case.model().to(device)
    x, y = (t.to(device) for t in case.batch())
    runs = {way.name: training(case, way, copy.deepcopy(first), x, y, device) for way in ways}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(0, steps, _TURN):
        for name, (step, _) in runs.items():
            for _ in range(_TURN):
                wait(device)
                started = time.perf_counter()
                next(step)
                wait(device)
                seconds[name].append(time.perf_counter() - started)
    found = {}
    for name, (_, memory) in runs.items():
        late = [r for r in memory.readings if r.step >= SETTLED]
        found[name] = Taken(seconds[name][SETTLED:], len(late), late[-1].cost_share if late else None)
    return found


def training(
    case: Case, way: Way, model: nn.Module, x: Tensor, y: Tensor, device: str
) -> tuple[Iterator[None], Memory]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=case.lr, foreach=True)
    memory = Memory()
    if way.guard is not None:
        guard = stepguard.attach(model, optimizer, recorders=[memory], strict=True, **way.guard)
        if way.by_difference:
            guard._probe.estimator.kind = "difference"
    precision = torch.autocast(device, torch.bfloat16) if case.half else nullcontext()

    def steps() -> Iterator[None]:
        for step in range(10**9):
            optimizer.param_groups[0]["lr"] = case.lr * way.factor(step)
            optimizer.zero_grad()
            with precision:
                loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
            loss.backward()
            if way.clip:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            yield

    return steps(), memory


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def show(taken: dict[str, Taken]) -> None:
    plain = taken["plain"]
    for name, way in taken.items():
        low, _, high = quantiles(way.seconds, n=4)
        print(
            f"| {name} | {1e3 * median(way.seconds):.2f} ({1e3 * low:.2f} to {1e3 * high:.2f}) "
            f"| {median(way.seconds) / median(plain.seconds):.2f} | {sum(way.seconds) / sum(plain.seconds):.3f} "
            f"| {way.readings} of {len(way.seconds)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="models whose names begin so")
    parser.add_argument("--steps", type=float, default=1.0, help="so many times as many steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    begin(options.threads, options.device)
    for case in CASES:
        if not case.name.startswith(tuple(options.only)) or (case.on == "cuda" and options.device == "cpu"):
            continue
        parameters = sum(p.numel() for p in case.model().parameters())
        print(f"\n**{case.name}**, {parameters / 1e6:.2f}M parameters\n")
        print("| way | step, ms (quartiles) | median / plain | whole time / plain | measured |\n|" + "---|" * 5)
        steps = SETTLED + int(options.steps * case.steps)
        show(measure(case, WAYS, steps, options.device))
        storms = measure(case, STORMS, SETTLED + int(options.steps * min(case.steps // 2, 60)), options.device)
        show(storms)


if __name__ == "__main__":
    main()
