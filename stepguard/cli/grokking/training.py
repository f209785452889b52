# shape suffixes: K = pairs to train on
from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from stepguard.cli.grokking.addition import Addition, addition, mlp
from stepguard.geometry.perp_grad import perp_grad_
from stepguard.guard import monitor_collapse
from stepguard.records import CollapseReading, Event, Memory, Recorder


class PerpGrad(NamedTuple):
    """How the gradient is made perpendicular to the weights."""

    over: Literal["tensor", "all"] = "tensor"
    restore_norm: bool = True


class Run(NamedTuple):
    """One training run on modular addition, by full-batch AdamW without weight decay."""

    modulus: int
    seed: int
    lr: float
    epochs: int
    perp_grad: PerpGrad | None = None
    loss_dtype: torch.dtype = torch.float32
    recorders: tuple[Recorder, ...] = ()


class Frame(NamedTuple):
    """What a run looks like after one epoch, of one step; accuracies in percent, in eval mode."""

    step: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    reading: CollapseReading | None
    events: tuple[Event, ...]


def train(run: Run) -> Iterator[Frame]:
    """Train as told, one frame an epoch: protocol and random numbers of arXiv 2501.04697, section 5."""
    torch.manual_seed(run.seed)
    data, model = addition(run.modulus), mlp(run.modulus)
    # Runs take turns: each needs a stream of its own to see the batches that it would see alone.
    stream = torch.Generator()
    stream.set_state(torch.get_rng_state())
    # betas and eps are AdamW's own. So they were in the paper's perpGrad runs, whose wrapper let go of
    # the (0.9, 0.99) and 1e-25 it was given; plain AdamW learns as little with either.
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=0.0)
    memory = Memory()
    with monitor_collapse(model, optimizer, cadence=1, recorders=(memory, *run.recorders)) as monitor:
        if run.perp_grad:
            # After the monitor's own hook, which so still sees the gradient as backward left it.
            optimizer.register_step_pre_hook(partial(_perp_grad, run.perp_grad))
        for epoch in range(run.epochs):
            batch_K = data.train_K[torch.randperm(len(data.train_K), generator=stream)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data.pairs_NP[batch_K]).to(run.loss_dtype), data.sums_N[batch_K])
            loss.backward()
            optimizer.step()
            reading = monitor.last if monitor.last and monitor.last.step == epoch else None
            events, memory.events = tuple(memory.events), []
            yield Frame(epoch, loss.item(), *accuracies(model, data), reading, events)


def _perp_grad(how: PerpGrad, optimizer: torch.optim.Optimizer, *_: object) -> None:
    perp_grad_(optimizer.param_groups[0]["params"], over=how.over, restore_norm=how.restore_norm)


@torch.no_grad()
def accuracies(model: nn.Module, data: Addition) -> tuple[float, float]:
    """Percent of the training and of the test pairs that are right, in eval mode."""
    model.eval()
    right_N = (model(data.pairs_NP).argmax(-1) == data.sums_N).float()
    model.train()
    return 100 * right_N[data.train_K].mean().item(), 100 * right_N[data.test_K].mean().item()
