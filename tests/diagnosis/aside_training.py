"""One training loop for all runs kept aside: what a person writes, with places at which something goes wrong."""

import contextlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import stepguard


def cross_entropy(z, y):
    return F.cross_entropy(z.flatten(0, -2), y.flatten())


@dataclass
class Training:
    """What a fault finds before the forward pass of a step, and may change."""

    model: Any
    optimizer: Any
    schedule: Any = None
    loss: Any = None
    step: int = 0
    x: Any = None
    y: Any = None
    generator: torch.Generator = field(default_factory=torch.Generator)

    def rates_times(self, factor):
        for group in self.optimizer.param_groups:
            group["lr"] *= factor


def train(
    folder: Path,
    seed: int,
    *,
    data,
    net,
    optimizer,
    steps,
    batch=64,
    action="observe",
    target=1.0,
    cadence="auto",
    clip=None,
    accumulate=1,
    schedule=None,
    fault=None,
    loss=cross_entropy,
    autocast=None,
    monitor=0,
    resume_at=None,
    resume=None,
    size=None,
    drop_last=True,
):
    """Train under a guard that writes its records to the folder.

    ``resume_at`` ends the process, so to say, at that step; another goes on, in which ``resume`` says what is wrong.
    ``monitor`` is the cadence of a collapse monitor, if there is one; ``size`` how many of the data there are.
    """
    torch.manual_seed(seed)
    t = Training(net(), None, generator=torch.Generator().manual_seed(seed))
    t.optimizer = optimizer(t.model)
    t.schedule, t.loss = schedule and schedule(t.optimizer), loss
    batches = endless(data(), batch, size, drop_last, t.generator)
    settings = {"action": action, "target": target, "cadence": cadence}
    states, stretches = None, [range(resume_at or steps), range(resume_at or steps, steps)]
    for stretch in filter(len, stretches):
        if states:
            t = resumed(t, net, optimizer, schedule)
            if resume:
                resume(t)
        with watched(folder, t, settings, monitor, states) as watchers:
            for t.step in stretch:
                _step(t, batches, accumulate, clip, autocast, fault)
            states = [watcher.state_dict() for watcher in watchers]
    return t


def _step(t, batches, accumulate, clip, autocast, fault):
    t.optimizer.zero_grad()
    for _ in range(accumulate):
        t.x, t.y = next(batches)
        if fault:
            fault(t)
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            value = t.loss(t.model(t.x), t.y)
        (value / accumulate).backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(t.model.parameters(), clip)
    t.optimizer.step()
    if t.schedule:
        t.schedule.step()


def endless(data, batch, size, drop_last, generator):
    """Epoch after epoch in a new order; the last batch of each is what is left, if that may be."""
    x, y = (part[:size] for part in data)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if len(rows) < batch and drop_last:
                continue
            yield x[rows], y[rows]


def resumed(old, net, optimizer, schedule):
    """What a new process has that loads everything from a checkpoint."""
    t = Training(net(), None, loss=old.loss, generator=old.generator)
    t.model.load_state_dict(old.model.state_dict())
    t.optimizer = optimizer(t.model)
    t.schedule = schedule and schedule(t.optimizer)
    t.optimizer.load_state_dict(old.optimizer.state_dict())
    if t.schedule:
        t.schedule.load_state_dict(old.schedule.state_dict())
    return t


@contextlib.contextmanager
def watched(folder, t, settings, monitor, states):
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "stepguard: ")  # that something goes wrong is the point
        attach, look = stepguard.attach, stepguard.monitor_collapse
        watchers = [stack.enter_context(attach(t.model, t.optimizer, log_dir=folder, **settings))]
        if monitor:
            watchers.append(stack.enter_context(look(t.model, t.optimizer, cadence=monitor, log_dir=folder)))
        for watcher, state in zip(watchers, states or [], strict=False):
            watcher.load_state_dict(state)
        yield watchers
