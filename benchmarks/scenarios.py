"""Training runs in which something happens to r: what the cadence is tried on."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import GPT, text_batch
from stepguard.cli.spike.digits import digits_stratified
from stepguard.cli.spike.models import MODELS

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
Rate = Callable[[int], float]


class Task(NamedTuple):
    model: Callable[[], nn.Module]
    batches: Batches
    optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
    lr: float
    steps: int


class Scenario(NamedTuple):
    name: str
    kind: str
    """spike, rate, restarts or data."""
    task: Task
    factor: Rate
    """What the task's learning rate is multiplied by, step by step."""
    head_only: bool = False
    """Only the last parameter group is."""
    batches: Batches | None = None
    """Instead of the task's."""
    seed: int = 0


def digits(batch: int) -> Batches:
    def of(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        data, order = digits_stratified(seed), torch.Generator().manual_seed(seed + 11)
        while True:
            for index in torch.randperm(len(data.train_x_NP), generator=order).split(batch):
                yield data.train_x_NP[index], data.train_y_N[index]

    return of


def text(batch: int, length: int) -> Batches:
    def of(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.Generator().manual_seed(seed + 11)
        while True:
            yield text_batch(order, batch, length)

    return of


def changed(batches: Batches, at: int) -> Batches:
    """From a step on other inputs, other labels: scaled, noisy, and named anew."""

    def of(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (x, y) in enumerate(batches(seed)):
            if step < at:
                yield x, y
            elif x.is_floating_point():
                yield 4 * x.flip(-1), (y + 1) % 10
            else:
                yield (x * 7 + 3) % 256, (y * 7 + 3) % 256

    return of


def adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_groups(parameters), lr=lr)


def sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(_groups(parameters), lr=lr, momentum=0.9)


def _groups(parameters: list[nn.Parameter]) -> list[dict[str, list[nn.Parameter]]]:
    return [{"params": parameters[:-2]}, {"params": parameters[-2:]}]


TASKS = {
    "MLP, Adam": Task(MODELS["mlp"], digits(64), adam, 1e-3, 300),
    "MLP, SGD": Task(MODELS["mlp"], digits(64), sgd, 1e-2, 300),
    "MLP+LN, Adam": Task(MODELS["mlp-ln"], digits(64), adam, 1e-3, 300),
    "transformer, Adam": Task(MODELS["transformer"], digits(128), adam, 3e-3, 300),
    "CNN+BN, Adam": Task(MODELS["cnn-bn"], digits(64), adam, 3e-3, 250),
    "GPT, AdamW": Task(lambda: GPT(2, 64, 4, 256, 64), text(8, 48), adam, 1e-3, 300),
}
SPIKES: dict[str, Callable[[float, int], Rate]] = {
    "one step": lambda f, at: lambda step: f if step == at else 1.0,
    "ten steps": lambda f, at: lambda step: f if at <= step < at + 10 else 1.0,
    "held": lambda f, at: lambda step: f if step >= at else 1.0,
    "ramp over 30": lambda f, at: lambda step: f ** min(max((step - at) / 30, 0.0), 1.0),
    "ramp over 100": lambda f, at: lambda step: f ** min(max((step - at) / 100, 0.0), 1.0),
}


def warm_restarts(period: int, top: float) -> Rate:
    return lambda step: top * 0.5 * (1 + math.cos(math.pi * (step % period) / period))


def warm_up(steps: int) -> Rate:
    return lambda step: min((step + 1) / steps, 1.0)


def scenarios() -> list[Scenario]:
    found = []
    for name, task in TASKS.items():
        for spike, shape in SPIKES.items():
            for i, factor in enumerate((3.0, 30.0, 300.0, 10_000.0)):
                at = 120 + 17 * i  # not where something is due anyway
                found.append(Scenario(f"{name}: x{factor:g}, {spike}", "spike", task, shape(factor, at), seed=i))
        found.append(Scenario(f"{name}: x1000, head only", "spike", task, SPIKES["one step"](1000, 133), True))
        for factor in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
            found.append(Scenario(f"{name}: lr x{factor:g}", "rate", task, lambda step, f=factor: f))
        for top in (1.0, 10.0):
            found.append(Scenario(f"{name}: restarts to x{top:g}", "restarts", task, warm_restarts(70, top)))
        found.append(Scenario(f"{name}: warm-up to x10", "restarts", task, lambda step: 10 * warm_up(150)(step)))
        for factor in (1.0, 10.0):
            data = changed(task.batches, 150)
            found.append(
                Scenario(f"{name}: other data, lr x{factor:g}", "data", task, lambda s, f=factor: f, batches=data)
            )
    return found


class Made(NamedTuple):
    """A step that was made."""

    step: int
    model: nn.Module
    x: Tensor
    old: dict[str, Tensor]
    """The parameters before it."""


def train(scenario: Scenario, begin: Callable[[nn.Module, torch.optim.Optimizer], object]) -> Iterator[Made]:
    """The steps of a scenario; ``begin`` may attach what watches them."""
    task = scenario.task
    torch.manual_seed(scenario.seed)
    model = task.model()
    optimizer = task.optimizer(list(model.parameters()), task.lr)
    begin(model, optimizer)
    for step, (x, y) in zip(range(task.steps), (scenario.batches or task.batches)(scenario.seed), strict=False):
        factor = scenario.factor(step)
        for i, group in enumerate(optimizer.param_groups):
            group["lr"] = task.lr * (1.0 if scenario.head_only and i == 0 else factor)
        old = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
        optimizer.step()
        yield Made(step, model, x, old)
