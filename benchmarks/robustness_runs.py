"""Networks, ways of training and single runs of benchmarks.robustness."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stepguard
from benchmarks.networks import GPT, text_batch
from benchmarks.peers import PEERS, Peer
from benchmarks.scenarios import Rate
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


def read(paths: Iterable[Path]) -> list[Result]:
    """What earlier runs wrote down."""
    return [Result(**json.loads(line)) for path in paths for line in path.read_text().splitlines()]
