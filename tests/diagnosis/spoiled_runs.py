"""Runs on handwritten digits that go wrong for a known reason, which is to be found out from their records."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import stepguard

BEGINS = 120
"""The step at which most faults set in."""
DIGITS = load_digits()
X, Y = torch.tensor(DIGITS.data / 16, dtype=torch.float32), torch.tensor(DIGITS.target)


class Faults(NamedTuple):
    """What differs from an ordinary run, each as a function of the step and what there would be without it."""

    rate: Callable[[int, float], float] = lambda step, lr: lr
    data: Callable[[int, torch.Tensor, torch.Tensor], tuple] = lambda step, x, y: (x, y)
    model: Callable[[int, nn.Module], None] = lambda step, model: None
    optimizer: Callable = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    loss: Callable = F.cross_entropy
    network: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    steps: int = 200
    samples: int = 64
    steady: bool = False
    """The same samples at every step."""


class Spoiled(NamedTuple):
    """A run, and what there is to be found out."""

    cause: str
    step: int | None
    """Where the fault sets in; None if there is none."""
    faults: Faults
    within: int = 3
    """Steps until r is over its target."""
    action: str = "observe"


def train(folder: Path, seed: int, spoiled: Spoiled, action: str | None = None) -> list[float]:
    """Train, with records in a folder; returns the losses."""
    torch.manual_seed(seed)
    faults = spoiled.faults
    model = faults.network()
    optimizer = faults.optimizer(model.parameters())
    rate = optimizer.param_groups[0]["lr"]
    losses = []
    with (
        stepguard.attach(model, optimizer, action=action or spoiled.action, log_dir=folder),
        stepguard.monitor_collapse(model, optimizer, log_dir=folder, cadence=10),
    ):
        for step in range(faults.steps):
            faults.model(step, model)
            optimizer.param_groups[0]["lr"] = faults.rate(step, rate)
            chosen = torch.arange(faults.samples) if faults.steady else torch.randint(len(X), (faults.samples,))
            x, y = faults.data(step, X[chosen].clone(), Y[chosen])
            optimizer.zero_grad()
            loss = faults.loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def from_then(step: int, value: float, otherwise: float, for_steps: int = 10**9) -> float:
    return value if BEGINS <= step < BEGINS + for_steps else otherwise


def one_is_large(step, x, y):
    if step == BEGINS:
        x[5] *= 1000
    return x, y


def shuffled(step, x, y):
    return (x, y[torch.randperm(len(y))]) if BEGINS <= step < BEGINS + 10 else (x, y)


@torch.no_grad()
def weights_grow(step, model):
    if step >= BEGINS:
        for p in model.parameters():
            p *= 1.05


@torch.no_grad()
def weights_are_scaled(step, model):
    if step == BEGINS:
        model[0].weight *= 20


def cosine_with_restart(step: int, lr: float) -> float:
    phase = (step % BEGINS) / BEGINS
    return lr * (0.5 + 0.5 * torch.cos(torch.tensor(torch.pi * phase)).item()) + 1e-4


def in_half(logits, y):
    return F.cross_entropy(logits.half(), y)


def sgd(lr: float, momentum: float = 0.9):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum)


def adam(lr: float):
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


SPOILED: dict[str, Spoiled] = {
    "the learning rate jumps a hundredfold and stays": Spoiled(
        "learning rate jump", BEGINS, Faults(rate=lambda step, lr: from_then(step, 100 * lr, lr), optimizer=sgd(0.02))
    ),
    "Adam's learning rate is ten thousand times as large for one step": Spoiled(
        "learning rate jump",
        BEGINS,
        Faults(rate=lambda step, lr: from_then(step, 1e4 * lr, lr, 1), optimizer=adam(1e-3)),
        action="clamp",
    ),
    "the learning rate grows by a twentieth at each step": Spoiled(
        "learning rate ramp",
        40,
        Faults(rate=lambda step, lr: lr * 1.05 ** max(0, step - 40), optimizer=adam(1e-4)),
        within=150,
    ),
    "labels are shuffled for ten steps": Spoiled(
        "label noise", BEGINS, Faults(data=shuffled, optimizer=sgd(0.1), steps=180), within=9
    ),
    "one sample is a thousand times as large": Spoiled("outlier sample", BEGINS, Faults(data=one_is_large)),
    "momentum of 0.995 goes one way for long": Spoiled(
        "momentum build-up", 0, Faults(optimizer=sgd(0.1, 0.995), steady=True), within=100
    ),
    "weights grow by a twentieth at each step": Spoiled(
        "weight blow-up", BEGINS, Faults(model=weights_grow, optimizer=sgd(0.02)), within=40
    ),
    "a layer is loaded twenty times too large": Spoiled(
        "weight blow-up", BEGINS, Faults(model=weights_are_scaled, optimizer=sgd(0.02))
    ),
    "the loss takes its softmax in float16": Spoiled(
        "softmax collapse", 0, Faults(loss=in_half, optimizer=adam(3e-3), steps=300, steady=True), within=300
    ),
    "the learning rate is back where it was when the model knew nothing": Spoiled(
        "warm restart",
        BEGINS,
        Faults(rate=cosine_with_restart, optimizer=sgd(0.3)),
        within=15,
    ),
    "nothing": Spoiled("healthy", None, Faults(optimizer=sgd(0.05))),
    "nothing, with Adam": Spoiled("healthy", None, Faults(optimizer=adam(1e-3)), action="clamp"),
}
