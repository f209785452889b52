from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import swa_utils

from stepguard.cli.spike.digits import Digits
from stepguard.guard import Action, ClampTo, attach
from stepguard.records import Event, Memory, Reading, Recorder


class Spike(NamedTuple):
    """The learning rate times ``factor``, for ``length`` steps from step ``start`` on (None: to the end)."""

    factor: float = 10_000.0
    start: int = 50
    length: int | None = None

    def at(self, step: int) -> float:
        """What the learning rate is multiplied by at this step."""
        held = self.length is None or step < self.start + self.length
        return self.factor if self.start <= step and held else 1.0


class Run(NamedTuple):
    """One training run: what is trained, what hits it, what protects it."""

    model: Callable[[], nn.Module]
    data: Digits
    seed: int
    lr: float
    steps: int
    batch_size: int | None = None
    """Samples a step in fresh permutations; None is the full batch."""
    spike: Spike | None = None
    clip: float | None = None
    """Gradient norm to clip at."""
    action: Action = "observe"
    target: float = 1.0
    clamp_to: ClampTo = "calm"
    forward: Callable[[nn.Module], Tensor] | None = None
    recorders: tuple[Recorder, ...] = ()
    evaluate: Callable[[nn.Module, Digits], float] | None = None
    """Instead of :func:`accuracy`."""


class Frame(NamedTuple):
    """What a run looks like after one step; accuracy in percent on the test set, in eval mode."""

    step: int
    loss: float
    accuracy: float
    lr: float
    reading: Reading | None
    events: tuple[Event, ...]


def train(run: Run) -> Iterator[Frame]:
    """Train as told, one frame a step.

    The loop is an ordinary one; the guard is its one extra line. It measures every step, for the picture; runs that
    do not clamp are measured all the same, by a guard that only observes.
    """
    torch.manual_seed(run.seed)
    model = run.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr)
    memory = Memory()
    recorders = (memory, *run.recorders)
    settings: dict[str, Any] = {"action": run.action, "target": run.target, "clamp_to": run.clamp_to}
    settings |= {"cadence": "every", "forward": run.forward}
    with attach(model, optimizer, **settings, recorders=recorders) as guard:
        for step, (x, y) in zip(range(run.steps), batches(run), strict=False):
            lr = run.lr * (run.spike.at(step) if run.spike else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if run.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), run.clip)
            optimizer.step()
            reading = guard.last if guard.last and guard.last.step == step else None
            events, memory.events = tuple(memory.events), []
            yield Frame(step, loss.item(), (run.evaluate or accuracy)(model, run.data), lr, reading, events)


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Percent of the test set that is right, in eval mode.

    BatchNorm uses the statistics that the training set has under the present weights. Its running
    averages answer for the weights of some twenty steps ago, and at these learning rates that alone
    costs most of the accuracy, spike or not.
    """
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        model = copy.deepcopy(model)
        swa_utils.update_bn([data.train_x_NP], model)
    model.eval()
    right: float = (model(data.test_x_NP).argmax(-1) == data.test_y_N).float().mean().item()
    model.train()
    return 100 * right


def batches(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """What the run trains on, without end; the same for every call."""
    x, y = run.data.train_x_NP, run.data.train_y_N
    if run.batch_size is None:
        while True:
            yield x, y
    order = np.random.default_rng(run.seed + 11)
    while True:
        for index in torch.from_numpy(order.permutation(len(x))).split(run.batch_size):
            yield x[index], y[index]
