"""What goes wrong in the unseen runs, and the losses that they are trained with."""

from functools import partial

import torch
import torch.nn.functional as F


def matches(z, y):
    """The symmetric loss of two towers, each row's own column being right."""
    right = torch.arange(len(z))
    return (F.cross_entropy(z, right) + F.cross_entropy(z.T, right)) / 2


def both(z, y, share=0.3):
    return F.cross_entropy(z[0], y[:, 0]) + share * F.cross_entropy(z[1], y[:, 1])


def smoothed(z, y):
    return F.cross_entropy(z, y, label_smoothing=0.1)


def weighted(z, y, weights=(3.0, 0.5)):
    return F.cross_entropy(z, y, weight=torch.tensor(weights))


def in_kind(kind):
    return lambda z, y: F.cross_entropy(z.to(kind), y)


def on(steps, change):
    steps = {steps} if isinstance(steps, int) else set(steps)

    def fault(t):
        if t.step in steps:
            change(t)

    return fault


def rates(factor, group=None):
    def change(t):
        for number, each in enumerate(t.optimizer.param_groups):
            if group in (None, number):
                each["lr"] *= factor

    return change


def one_step(step, factor, group=None):
    def fault(t):
        if t.step in (step, step + 1):
            rates(factor if t.step == step else 1 / factor, group)(t)

    return fault


def options(**changed):
    def change(t):
        for group in t.optimizer.param_groups:
            group.update(changed)

    return change


def weights(factor, part=""):
    @torch.no_grad()
    def change(t):
        for name, parameter in t.model.named_parameters():
            if name.startswith(part):
                parameter.mul_(factor)

    return change


def inputs(rule):
    def change(t):
        t.x = rule(t.x)

    return change


def labels(rule, share=1.0):
    def change(t):
        wrong = torch.rand(len(t.y), generator=t.generator) < share
        t.y = torch.where(wrong, rule(t.y), t.y)

    return change


def sample(rule, label=None):
    """Something is wrong with the fourth sample, and maybe with its label."""

    def change(t):
        t.x, t.y = t.x.clone(), t.y.clone()
        t.x[3] = rule(t.x[3])
        if label:
            t.y[3] = label(t.y[3])

    return change


def loss(other):
    """Another loss, for the steps that it is called on; the usual one has to be given back."""

    def change(t):
        t.loss = other

    return change


def optimizer_anew(build):
    """The state of the optimizer was not in the checkpoint."""

    def change(t):
        t.optimizer = build(t.model)

    return change


def schedule_gone(rate):
    """The rate is what the configuration says, and no schedule is on it."""

    def change(t):
        t.schedule = None
        options(lr=rate)(t)

    return change


shuffled = partial(torch.flip, dims=(0,))
