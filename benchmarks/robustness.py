"""What a learning rate that is wrong does to a run: ours beside what people use today.

python -m benchmarks.robustness rates                  # learning rates over a factor of 1,000
python -m benchmarks.robustness spikes                 # one step, ten steps, held, ramp; x10 to x10,000
python -m benchmarks.robustness drive                  # tuned rates, tuned cosines, and steps of a chosen r
python -m benchmarks.robustness spikes --only "MLP" --ways plain limit calm --seeds 3

Networks of the paper's protocols, a CNN with BatchNorm that learns, and a byte-level GPT on the source of Python's own
library. Every result lands in a file of JSON lines beside the table, so that pictures need no new runs.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import stepguard
from benchmarks.environment import begin
from benchmarks.networks import GPT, text_batch
from benchmarks.peers import PEERS, Peer
from benchmarks.scenarios import SPIKES, Rate
from stepguard.cli.spike.digits import Digits, digits_in_order, digits_stratified
from stepguard.cli.spike.models import MODELS

Batch = tuple[Tensor, Tensor]


class Data(NamedTuple):
    batches: Iterator[Batch]
    test: Batch


class Network(NamedTuple):
    model: Callable[[], nn.Module]
    data: Callable[[int], Data]
    optimizer: type[torch.optim.Optimizer]
    lr: float
    steps: int
    spike_at: int
    by_loss: bool = False
    """Judged by its loss on text that it has not seen, instead of by accuracy in percent."""
    evaluated: int = 1
    """Every so many steps."""
    own_statistics: bool = False
    """BatchNorm takes the test set's own, for the running averages of so short a run are nowhere near."""


def cnn2d() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def shuffled(data: Digits, batch: int, seed: int) -> Data:
    order = torch.Generator().manual_seed(seed + 11)

    def batches() -> Iterator[Batch]:
        while True:
            for index in torch.randperm(len(data.train_x_NP), generator=order).split(batch):
                yield data.train_x_NP[index], data.train_y_N[index]

    return Data(batches(), (data.test_x_NP, data.test_y_N))


def whole(seed: int) -> Data:
    data = digits_in_order()
    return Data(iter(lambda: (data.train_x_NP, data.train_y_N), None), (data.test_x_NP, data.test_y_N))


def text(seed: int) -> Data:
    order = torch.Generator().manual_seed(seed + 11)
    return Data(iter(lambda: text_batch(order, 16, 64), None), text_batch(torch.Generator().manual_seed(999), 64, 64))


Adam, AdamW = torch.optim.Adam, torch.optim.AdamW
NETWORKS = {
    "MLP (A1)": Network(MODELS["mlp"], lambda s: shuffled(digits_stratified(s), 64, s), Adam, 1e-3, 200, 50),
    "transformer (A2)": Network(MODELS["transformer"], whole, Adam, 0.015, 200, 50),
    "MLP+LN (A2)": Network(MODELS["mlp-ln"], whole, Adam, 0.015, 200, 50),
    "CNN+BN (A2)": Network(MODELS["cnn-bn"], whole, Adam, 0.015, 200, 50, own_statistics=True),
    "CNN+BN that learns": Network(cnn2d, lambda s: shuffled(digits_stratified(s), 128, s), Adam, 0.005, 400, 100),
    "GPT, bytes": Network(lambda: GPT(2, 96, 4, 256, 64), text, AdamW, 3e-3, 300, 150, True, 10),
}
OURS: dict[str, dict[str, Any]] = {
    "limit": {"clamp_to": "limit"},
    "calm": {"clamp_to": "calm"},
    "limit, target 0.5": {"clamp_to": "limit", "target": 0.5},
    "calm, target 0.5": {"clamp_to": "calm", "target": 0.5},
    "calm, target 2": {"clamp_to": "calm", "target": 2.0},
    "calm, 0.2 at quantile 0.9": {"clamp_to": "calm", "target": 0.2, "quantile": 0.9},
    "drive, target 0.5": {"action": "drive", "target": 0.5},
    "drive, 0.2 at quantile 0.9": {"action": "drive", "target": 0.2, "quantile": 0.9},
}
DRIVES: dict[str, dict[str, Any]] = {
    f"drive, {target:g} at quantile {quantile:g}": {"action": "drive", "target": target, "quantile": quantile}
    for target, quantile in ((0.1, 0.9), (0.2, 0.9), (0.4, 0.9), (0.25, 1.0), (0.5, 1.0))
}
WAYS = [*PEERS, *OURS]


class Result(NamedTuple):
    network: str
    way: str
    what: str
    seed: int
    lr: float
    scores: list[float]
    """Accuracy on the test set in percent, or loss on unseen text, every so many steps."""
    seconds: float
    """Of training alone."""
    clamped: int


def train(name: str, way: str, what: str, lr: float, factor: Rate, seed: int) -> Result:
    network = NETWORKS[name]
    torch.manual_seed(seed)
    model, data = network.model(), network.data(seed)
    parameters = list(model.parameters())
    optimizer = network.optimizer(parameters, lr)
    peer = PEERS.get(way, Peer)(parameters, lr, network.steps)
    settings = (OURS | DRIVES).get(way)
    guard = None if settings is None else stepguard.attach(model, optimizer, strict=False, **settings)
    scores, seconds, clamped = [], 0.0, 0

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, -2), y.flatten())

    for step in range(network.steps):
        started = time.perf_counter()
        x, y = next(data.batches)
        optimizer.param_groups[0]["lr"] = peer.rate(step, lr * factor(step))
        optimizer.zero_grad()
        loss = loss_of(x, y)
        loss.backward()
        peer.step(optimizer, float(loss.detach()), partial(loss_of, x, y))
        seconds += time.perf_counter() - started
        clamped += bool(guard and guard.last and guard.last.step == step and guard.last.scale != 1)
        if (step + 1) % network.evaluated == 0:
            scores.append(score(model, data.test, network))
    if guard:
        guard.detach()
    return Result(name, way, what, seed, lr, scores, seconds, clamped)


@torch.no_grad()
def score(model: nn.Module, test: Batch, network: Network) -> float:
    model.train(network.own_statistics)
    kept = [b.clone() for b in model.buffers()]
    z, y = model(test[0]).flatten(0, -2), test[1].flatten()
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
    model.train()
    if network.by_loss:
        loss = float(F.cross_entropy(z, y))
        return loss if math.isfinite(loss) else math.inf
    return 100 * float((z.argmax(-1) == y).float().mean())


def steady(step: int) -> float:
    return 1.0


def rate_runs(name: str) -> Iterator[tuple[str, float, Rate]]:
    for exponent in range(-8, 1, 1):  # 1e-4 to 1 in half decades
        lr = 10 ** (exponent / 2)
        yield f"lr {lr:.3g}", lr, steady


def spike_runs(name: str) -> Iterator[tuple[str, float, Rate]]:
    network = NETWORKS[name]
    yield "no spike", network.lr, steady
    for kind in ("one step", "ten steps", "held", "ramp over 30"):
        for size in (10.0, 100.0, 1000.0, 10_000.0):
            # All sizes of the one that lasts, of the others the worst: r is linear in it.
            if kind != "held" and size < 10_000:
                continue
            yield f"{kind}, x{size:g}", network.lr, SPIKES[kind](size, network.spike_at)


def drive_runs(name: str, way: str) -> Iterator[tuple[str, float, Rate]]:
    rates = [NETWORKS[name].lr] if way in DRIVES else [10 ** (exponent / 4) for exponent in range(-14, -3)]
    return ((f"lr {lr:.2g}", lr, steady) for lr in rates)


def drive_rows(network: Network, results: list[Result]) -> None:
    """Mean and standard deviation over seeds at the end, of the best rate where there are several."""
    print("| way | rate | at the end |\n|---|---|---|")
    for way in dict.fromkeys(r.way for r in results):
        by_rate = {lr: [r.scores[-1] for r in results if (r.way, r.lr) == (way, lr)] for lr in {r.lr for r in results}}
        found = {lr: (mean(scores), stdev(scores)) for lr, scores in by_rate.items() if len(scores) > 1}
        best = (min if network.by_loss else max)(found, key=lambda lr: found[lr][0])
        rate = "any" if way in DRIVES else f"{best:.2g}, the best of {len(found)}"
        print(f"| {way} | {rate} | {found[best][0]:.3f} ± {found[best][1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["rates", "spikes", "drive"])
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose names begin so")
    parser.add_argument("--what", nargs="+", default=[""], help="runs whose names begin so, such as held")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="small models lose by more (default 1)")
    parser.add_argument(
        "--results", type=Path, default=Path("robustness.jsonl"), help="where every run is written down"
    )
    options = parser.parse_args()
    begin(options.threads)
    of = {"rates": rate_runs, "spikes": spike_runs}.get(options.part)
    ways = options.ways if of else ["plain", "cosine", *DRIVES]
    plans = [
        (name, way, what, lr, factor, seed)
        for name in NETWORKS
        if name.startswith(tuple(options.only))
        for way in ways
        for what, lr, factor in (of(name) if of else drive_runs(name, way))
        if what.startswith((*options.what, "no spike"))
        for seed in range(options.seeds)
    ]
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress, options.results.open("a") as file:
        for plan in progress.track(plans, description="runs"):
            results.append(train(*plan))
            print(json.dumps(results[-1]._asdict()), file=file, flush=True)
    for name in dict.fromkeys(r.network for r in results):
        print(f"\n**{name}**\n")
        (rows if of else drive_rows)(NETWORKS[name], [r for r in results if r.network == name])


def rows(network: Network, results: list[Result]) -> None:
    runs = list(dict.fromkeys(r.what for r in results))
    print("| way | " + " | ".join(runs) + " |\n|" + "---|" * (len(runs) + 1))
    for way in dict.fromkeys(r.way for r in results):
        cells = [cell(network, [r for r in results if (r.way, r.what) == (way, what)]) for what in runs]
        print(f"| {way} | " + " | ".join(cells) + " |", flush=True)


def cell(network: Network, results: list[Result]) -> str:
    """Final, and for accuracies the lowest after the spike."""
    final = median(r.scores[-1] for r in results)
    if network.by_loss:
        return f"{final:.3f}"
    lowest = median(min(r.scores[network.spike_at :]) for r in results)
    return f"{final:.1f} ({lowest:.1f})"


if __name__ == "__main__":
    main()
