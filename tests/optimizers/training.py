"""A small softmax model, how optimizers of each kind are stepped, and r by a float64 difference of its own."""

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from reference import mlp, parameters_of
from torch import Tensor, nn
from torch.optim import Optimizer

import stepguard
from stepguard.records import Memory

Advance = Callable[[nn.Module, Any, int], float]


class SparseRows(nn.Module):
    """Its gradients are sparse: an embedding of the largest feature."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(12, 16, sparse=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.rows(x.argmax(1)))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """16 samples of a task that can be learned, the same at each run."""
    x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
    teacher = torch.randn(12, 5, generator=torch.Generator().manual_seed(1000))
    return x, (x @ teacher).argmax(1)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def plain(model: nn.Module, optimizer: Any, step: int) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    optimizer.step()
    return loss.item()


def with_graph(model: nn.Module, optimizer: Any, step: int) -> float:
    """For those that take second derivatives."""
    loss = loss_of(model, step)
    torch.autograd.backward(loss, inputs=list(model.parameters()), create_graph=True)
    optimizer.step()
    for p in model.parameters():
        p.grad = None  # or parameter and graph would hold each other
    return loss.item()


def with_closure(model: nn.Module, optimizer: Any, step: int) -> float:
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    return losses[0]


def loss_as_closure(model: nn.Module, optimizer: Any, step: int) -> float:
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    optimizer.step(lambda: loss.item())
    return loss.item()


def backward_then_closure(model: nn.Module, optimizer: Any, step: int) -> float:
    """As pytorch_optimizer's SAM wants it."""

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    loss = closure()
    optimizer.step(closure)
    return loss.item()


def two_steps(model: nn.Module, optimizer: Any, step: int) -> float:
    """SAM without a closure."""
    loss = loss_of(model, step)
    loss.backward()
    optimizer.first_step(zero_grad=True)
    loss_of(model, step).backward()
    optimizer.second_step(zero_grad=True)
    return loss.item()


def set_closure(model: nn.Module, optimizer: Any, step: int) -> float:
    optimizer.set_closure(F.cross_entropy, *batch(step))
    return optimizer.step()[1].item()


def two_tasks(model: nn.Module, optimizer: Any, step: int) -> float:
    x, y = batch(step)
    z = model(x)
    loss = F.cross_entropy(z, y)
    optimizer.pc_backward([loss, 0.1 * F.cross_entropy(z, (y + 1) % 5)])
    optimizer.step()
    return loss.item()


def in_backward(model: nn.Module, optimizer: Any, step: int) -> float:
    """LOMO moves the parameters while their gradients come."""
    loss = loss_of(model, step)
    optimizer.fused_backward(loss, optimizer.param_groups[0]["lr"])
    return loss.item()


class Step(NamedTuple):
    """One step of a run."""

    loss: float
    made: float
    """r of the move that the parameters made, by nothing of stepguard's."""
    asked: float
    """Length of the move that the optimizer wanted; nan where that is unknown."""
    scale: float


class Outcome(NamedTuple):
    """A run."""

    steps: list[Step]
    model: nn.Module
    optimizer: Optimizer
    memory: Memory


def made_r(model: nn.Module, old: dict[str, Tensor], step: int) -> float:
    """r of the move from ``old`` to where the model is: a central difference of 1e-6, in float64."""
    x = batch(step)[0].double()
    update = {n: p.detach().double() - old[n].double() for n, p in model.named_parameters()}
    length = math.hypot(*(float(u.norm()) for u in update.values()))
    if length == 0 or not math.isfinite(length):
        return length
    h = 1e-6 / length
    with torch.no_grad():
        ahead, behind = (
            torch.func.functional_call(model, {n: old[n].double() + s * u for n, u in update.items()}, (x,))
            for s in (h, -h)
        )
    slopes = (ahead - behind) / (2 * h)
    return float((slopes.amax(1) - slopes.amin(1)).max()) / math.pi


def train(
    make: Callable[[nn.Module], Any],
    advance: Advance = plain,
    build: Callable[[], nn.Module] = mlp,
    steps: int = 60,
    spike: range = range(0),
    **guard: Any,
) -> Outcome:
    """Train, under a guard if settings for one are given.

    Args:
        make: Makes the optimizer.
        advance: Makes a step.
        build: Makes the model.
        steps: How many.
        spike: At which of them the learning rate is a thousand times what it should be.
        guard: Settings of the guard.
    """
    torch.manual_seed(0)
    random.seed(0)  # Kron, PCGrad and SaRA draw from these
    np.random.seed(0)
    model, memory, done = build(), Memory(), []
    optimizer = make(model)
    watching = stepguard.attach(model, optimizer, recorders=[memory], cadence="every", **guard) if guard else None
    for step in range(steps):
        old = parameters_of(model)
        rates = [group.get("lr") for group in optimizer.param_groups]
        if step in spike:
            _set_rates(optimizer, [rate and rate * 1000 for rate in rates])
        loss = advance(model, optimizer, step)
        if step in spike:
            _set_rates(optimizer, rates)
        if watching is None:
            asked = math.hypot(*(float((p.detach() - old[n]).double().norm()) for n, p in model.named_parameters()))
            scale = 1.0
        else:
            reading = watching.last if watching.last and watching.last.step == step else None
            asked, scale = (reading.tau, reading.scale) if reading else (math.nan, 1.0)
        done.append(Step(loss, made_r(model, old, step), asked, scale))
    if watching:
        watching.detach()
    return Outcome(done, model, optimizer, memory)


def _set_rates(optimizer: Any, rates: list[Any]) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if rate is not None:
            group["lr"] = rate
