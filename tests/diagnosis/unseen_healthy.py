"""Unseen runs in which nothing goes wrong."""

from functools import partial

import torch
from aside_scenario import of, trained
from torch import nn
from torch.optim import SGD, Adafactor, Adagrad, AdamW, NAdam, RAdam, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from unseen_faults import both, matches, on, rates, smoothed, weighted
from unseen_nets import (
    WORDS,
    BagOfWords,
    MixerBlock,
    Patches,
    Recurrent,
    TwoHeads,
    TwoTowers,
    logistic,
    papers,
    rows,
    tumours,
    two_tasks,
)
from unseen_rates import hill

FINE = "healthy", None, 0


def decayed_or_not(model):
    """No decay on norms and biases, as is usual."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    return AdamW([{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
                  {"params": flat, "weight_decay": 0.0}], lr=2e-3)  # fmt: skip


def head_first(model):
    """The body begins to learn later, as in fine-tuning."""
    return AdamW([{"params": model.cell.parameters(), "lr": 0.0}, {"params": model.head.parameters()}], lr=5e-3)


def thaw(t):
    t.optimizer.param_groups[0]["lr"] = 1e-3


def other_words(t):
    """One word in five is another one: the loss goes up, and nothing is wrong."""
    any_words = torch.randint(0, WORDS, t.x.shape, generator=t.generator)
    t.x = torch.where(torch.rand(t.x.shape, generator=t.generator) < 0.2, any_words, t.x)


HEALTHY = {
    "a GRU under OneCycle": trained(
        *FINE,
        **dict(data=rows, net=Recurrent, optimizer=of(NAdam, lr=1e-3), steps=250),
        schedule=partial(OneCycleLR, max_lr=2.5e-3, total_steps=251),
    ),
    "two towers that learn their temperature": trained(
        *FINE,
        **dict(data=rows, net=TwoTowers, loss=matches, optimizer=of(RAdam, lr=1e-3), steps=200, batch=64, monitor=20),
    ),
    "weights for the rare class": trained(
        *FINE,
        **dict(data=tumours, net=partial(logistic, 30, 2), loss=weighted, optimizer=of(Adagrad, lr=0.05), steps=200),
        **dict(batch=32, drop_last=False, action="clamp"),
    ),
    "smoothed labels, decay on matrices only, a hill of a schedule": trained(
        *FINE,
        **dict(data=rows, net=Patches, loss=smoothed, optimizer=decayed_or_not, steps=200, clip=1.0),
        **dict(schedule=hill(200, 0.15), target=0.5),
    ),
    "Adafactor on batches of eight": trained(
        *FINE,
        **dict(data=papers, net=BagOfWords, optimizer=of(Adafactor, lr=0.01), steps=600, batch=8),
    ),
    "a mixer that is stopped and goes on": trained(
        *FINE,
        **dict(data=rows, net=partial(Patches, MixerBlock), optimizer=of(AdamW, lr=2e-3), steps=180, resume_at=100),
        **dict(schedule=partial(CosineAnnealingLR, T_max=180), action="clamp", monitor=15),
    ),
    "two tasks, gradients of two batches, the rate up by half in the middle": trained(
        *FINE,
        **dict(data=two_tasks, net=TwoHeads, loss=both, steps=160, batch=32, accumulate=2, clip=2.0),
        **dict(optimizer=of(SGD, lr=0.02, momentum=0.9, nesterov=True), fault=on(80, rates(1.5))),
    ),
    "an LSTM whose body learns from step 100 on": trained(
        *FINE,
        **dict(data=rows, net=partial(Recurrent, nn.LSTM), optimizer=head_first, steps=250, fault=on(100, thaw)),
        action="clamp",
    ),
    "batches of four, an LSTM with RMSprop": trained(
        *FINE,
        **dict(data=rows, net=partial(Recurrent, nn.LSTM), optimizer=of(RMSprop, lr=8e-4), steps=400, batch=4),
    ),
    "texts that are less clear from the middle on": trained(
        *FINE,
        **dict(data=papers, net=BagOfWords, optimizer=of(AdamW, lr=2e-3), steps=300, batch=32, monitor=25),
        **dict(fault=on(range(150, 300), other_words), action="clamp"),
    ),
}
