"""How good a suggested learning rate is, and what it costs: stepguard.suggest_lr beside Lightning's lr_find.

python -m benchmarks.suggested_rate                # about half an hour on one core
python -m benchmarks.suggested_rate --only "MLP (A1)" --seeds 5

Networks and data of benchmarks.robustness. Every network is trained, with no guard, at the rates of a grid of half
decades and at each suggestion; the loss on unseen data after the last step is compared, medians over seeds.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import stepguard
from benchmarks.environment import begin
from benchmarks.robustness_runs import NETWORKS as ALL
from benchmarks.robustness_runs import Network, shuffled
from stepguard.cli.spike.digits import digits_stratified
from stepguard.cli.spike.models import MODELS

GRID = [10 ** (exponent / 2) for exponent in range(-8, 1)]
IN_BATCHES = {
    f"{name}, in batches": Network(
        MODELS[model], lambda seed: shuffled(digits_stratified(seed), 64, seed), torch.optim.Adam, 3e-3, 80, 0
    )
    for name, model in (("transformer", "transformer"), ("MLP+LN", "mlp-ln"))
}
"""Those of protocol A2 know their training set by heart too soon to tell a learning rate from another."""
NETWORKS = {name: network for name, network in (ALL | IN_BATCHES).items() if "A2" not in name}


class Wrapped(LightningModule):
    def __init__(self, network: Network, model: nn.Module):
        super().__init__()
        self.network, self.model, self.lr = network, model, network.lr

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return F.cross_entropy(self.model(batch[0]).flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.network.optimizer(self.model.parameters(), self.lr)


class Stream(IterableDataset):
    def __init__(self, network: Network, seed: int):
        self.network, self.seed = network, seed

    def __iter__(self):
        return self.network.data(self.seed).batches


def fresh(network: Network, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return network.model()


def final_loss(network: Network, lr: float, seed: int) -> tuple[float, float]:
    """Loss on unseen data after training, and the seconds of a step."""
    model, data = fresh(network, seed), network.data(seed)
    optimizer = network.optimizer(model.parameters(), lr)
    started = time.perf_counter()
    for _ in range(network.steps):
        x, y = next(data.batches)
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
    seconds = time.perf_counter() - started
    model.train(network.own_statistics)
    with torch.no_grad():
        loss = float(F.cross_entropy(model(data.test[0]).flatten(0, -2), data.test[1].flatten()))
    return loss if loss == loss else float("inf"), seconds / network.steps


def ours(network: Network, seed: int) -> tuple[float, float]:
    """The rate, and seconds."""
    model, data = fresh(network, seed), network.data(seed)
    optimizer = network.optimizer(model.parameters(), network.lr)
    started = time.perf_counter()
    found = stepguard.suggest_lr(model, optimizer, data.batches)
    return found.lr, time.perf_counter() - started


def lightnings(network: Network, seed: int) -> tuple[float, float]:
    """The same of lr_find, with its 100 steps from 1e-8 to 1."""
    module = Wrapped(network, fresh(network, seed))
    loader = DataLoader(Stream(network, seed), batch_size=None)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    started = time.perf_counter()
    found = Tuner(trainer).lr_find(module, train_dataloaders=loader, update_attr=False)
    seconds = time.perf_counter() - started
    return (found.suggestion() if found else None) or float("nan"), seconds


FINDERS: dict[str, Callable[[Network, int], tuple[float, float]]] = {"suggest_lr": ours, "lr_find": lightnings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    begin(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(
        "| network | best of the grid | its loss | by | rate | loss | beside the best | cost, steps |\n|" + "---|" * 8
    )
    seeds = range(options.seeds)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in progress.track(options.only, description="networks"):
            network = NETWORKS[name]
            runs = {lr: [final_loss(network, lr, seed) for seed in seeds] for lr in GRID}
            losses = {lr: median(loss for loss, _ in run) for lr, run in runs.items()}
            best = min(losses, key=losses.__getitem__)
            step = median(seconds for run in runs.values() for _, seconds in run)
            for by, finder in FINDERS.items():
                found = [finder(network, seed) for seed in seeds]
                loss = median(final_loss(network, lr, seed)[0] for (lr, _), seed in zip(found, seeds, strict=True))
                rate, cost = median(lr for lr, _ in found), median(seconds for _, seconds in found) / step
                print(
                    f"| {name} | {best:.2g} | {losses[best]:.3f} | {by} | {rate:.2g} | {loss:.3f} "
                    f"| {loss / losses[best]:.2f} | {cost:.1f} |",
                    flush=True,
                )
            print("losses by rate:", {f"{lr:.1g}": round(loss, 3) for lr, loss in losses.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
