"""What an unseen run carries from step to step: momentum, weights, moments; and softmax in half precision."""

from functools import partial

import torch
from aside_scenario import of, trained
from torch import nn
from torch.optim import SGD, Adam, AdamW, NAdam, RMSprop
from unseen_faults import both, in_kind, matches, on, options, weights
from unseen_nets import (
    BagOfWords,
    MixerBlock,
    Patches,
    Recurrent,
    TwoHeads,
    TwoTowers,
    logistic,
    papers,
    rows,
    two_tasks,
    wine,
)

MOMENTUM = {
    "Nesterov at 0.995 in a mixer": trained(
        *("momentum build-up", 0, 60),
        **dict(data=rows, net=partial(Patches, MixerBlock), steps=140, clip=1.0),
        optimizer=of(SGD, lr=0.1, momentum=0.995, nesterov=True),
    ),
    "RMSprop with momentum 0.99": trained(
        *("momentum build-up", 0, 80),
        **dict(data=papers, net=BagOfWords, optimizer=of(RMSprop, lr=1e-3, momentum=0.99), steps=150, batch=32),
        **dict(action="clamp", monitor=20),
    ),
    "momentum from 0.9 to 0.99 in a GRU, gradients of two batches": trained(
        *("momentum build-up", 60, 80),
        **dict(data=rows, net=Recurrent, optimizer=of(SGD, lr=0.1, momentum=0.9), steps=160, batch=48, accumulate=2),
        action="clamp",
        fault=on(60, options(momentum=0.99)),
    ),
}

WEIGHTS = {
    "the table of words comes back 60 times as large": trained(
        *("weight blow-up", 160, 1),
        **dict(data=papers, net=BagOfWords, optimizer=of(SGD, lr=0.4, momentum=0.8), steps=220, batch=64),
        **dict(resume_at=160, resume=weights(60, "words"), action="clamp"),
    ),
    "the head of an LSTM grows by eight percent a step": trained(
        *("weight blow-up", 100, 60),
        **dict(data=rows, net=partial(Recurrent, nn.LSTM), optimizer=of(NAdam, lr=1e-3), steps=170, batch=128),
        **dict(fault=on(range(100, 170), weights(1.08, "head")), monitor=10),
    ),
    "the head of a patch transformer is 40 times as large": trained(
        *("weight blow-up", 120, 1),
        **dict(data=rows, net=Patches, optimizer=of(AdamW, lr=2e-3), steps=170, action="clamp"),
        fault=on(120, weights(40, "head")),
    ),
}


def in_half_precision(t):
    """The checkpoint keeps second moments in float16, in which the small ones are nothing."""
    for state in t.optimizer.state.values():
        state["exp_avg_sq"] = state["exp_avg_sq"].half().float()


MOMENTS = {
    "second moments come back from float16": trained(
        *("optimizer state", 150, 10),
        **dict(data=two_tasks, net=TwoHeads, loss=both, optimizer=of(NAdam, lr=3e-3), steps=200, batch=128),
        **dict(resume_at=150, resume=in_half_precision),
    ),
}

SOFTMAX = {
    "logistic regression on wine, the logits in float16": trained(
        *("softmax collapse", 0, 280, False),
        **dict(data=wine, net=partial(logistic, 13, 3), optimizer=of(Adam, lr=0.02), steps=300, batch=89, monitor=10),
        loss=in_kind(torch.float16),
    ),
    "clear texts, the loss in bfloat16": trained(
        *("softmax collapse", 0, 250, False),
        **dict(data=partial(papers, 0.8), net=BagOfWords, optimizer=of(AdamW, lr=3e-3), steps=260, batch=64),
        **dict(loss=in_kind(torch.bfloat16), monitor=5, action="clamp"),
    ),
    "two towers, all pairs compared in bfloat16": trained(
        *("softmax collapse", 0, 390, False),
        **dict(data=rows, net=partial(TwoTowers, scale=28.0), optimizer=of(AdamW, lr=5e-4), steps=400, batch=32),
        **dict(loss=lambda z, y: matches(z.bfloat16(), y), monitor=10),
    ),
}
