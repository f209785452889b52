"""Batches of the unseen runs: wrong labels, outliers, other batches, numbers that are not finite."""

from functools import partial

import torch
import torch.nn.functional as F
from aside_scenario import of, trained
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RAdam
from unseen_faults import both, inputs, labels, loss, on, sample, shuffled
from unseen_nets import (
    BagOfWords,
    MixerBlock,
    Patches,
    Recurrent,
    TwoHeads,
    counts,
    logistic,
    papers,
    rows,
    tumours,
    two_tasks,
    wine,
)


def nine_minus(y):
    return 9 - y


def flipped(y):
    return 1 - y


LABELS = {
    "eight batches with the classes in the opposite order": trained(
        *("label noise", 200, 7),
        **dict(data=rows, net=Patches, optimizer=of(AdamW, lr=2.3e-3), steps=250, batch=128),
        fault=on(range(200, 208), labels(nine_minus)),
    ),
    "seven in ten labels of twelve batches are those of other texts": trained(
        *("label noise", 250, 8),
        **dict(data=papers, net=BagOfWords, optimizer=of(SGD, lr=0.3, momentum=0.9), steps=320, batch=32),
        **dict(fault=on(range(250, 262), labels(shuffled, 0.7)), action="clamp", monitor=25),
    ),
    "yes and no are confused for eight batches": trained(
        *("label noise", 150, 7),
        **dict(data=tumours, net=partial(logistic, 30, 2), batch=128, steps=200, clip=2.0, target=0.5),
        **dict(optimizer=of(SGD, lr=0.012, momentum=0.9, nesterov=True), fault=on(range(150, 158), labels(flipped))),
    ),
}


def a_word_often(x):
    return x + 2000 * F.one_hot(torch.tensor(7), len(x))


OUTLIERS = {
    "one row in other units, 200 times as large, of the wrong class": trained(
        *("outlier sample", 141, 0),
        **dict(data=tumours, net=partial(logistic, 30, 2), optimizer=of(SGD, lr=0.05), steps=190, batch=64),
        fault=on(141, sample(lambda x: -200 * x)),
    ),
    "a text that says one word 2000 times": trained(
        *("outlier sample", 90, 0),
        **dict(data=counts, net=partial(logistic, 300, 6), optimizer=of(RAdam, lr=5e-3), steps=150, batch=128),
        **dict(fault=on(90, sample(a_word_often, lambda y: (y + 1) % 6)), action="clamp", monitor=15),
        cadence="every",
    ),
    "one image 300 times as bright, two tasks": trained(
        *("outlier sample", 110, 0),
        **dict(data=two_tasks, net=TwoHeads, loss=both, optimizer=of(SGD, lr=0.03, momentum=0.9), steps=160, batch=32),
        fault=on(110, sample(lambda x: 300 * x)),
        action="clamp",
    ),
}


def with_log_of_nothing(z, y):
    """A penalty on confidence as one writes it first: 0 times -inf."""
    p = (100 * z).softmax(-1)
    return F.cross_entropy(z, y) + 0.1 * (p * p.log()).sum(-1).mean()


def with_distance_from_itself(z, y):
    """The loss is finite, its gradient is not: the root has no slope at zero."""
    return F.cross_entropy(z, y) + (z - z).square().sum(-1).sqrt().mean()


def standardised_by_nothing(x):
    """An empty image, standardised by its own deviation."""
    x = x.clone()
    x[5] = 0.0
    return (x - x.mean((1, 2), keepdim=True)) / x.std((1, 2), keepdim=True)


def usual_again(step, other, usual=F.cross_entropy):
    def fault(t):
        if t.step in (step, step + 1):
            loss(other if t.step == step else usual)(t)

    return fault


NOT_FINITE = {
    "a penalty takes the logarithm of nothing": trained(
        *("not finite", 160, 0),
        **dict(data=wine, net=partial(logistic, 13, 3), optimizer=of(Adagrad, lr=0.1), steps=220, batch=32),
        fault=usual_again(160, with_log_of_nothing),
    ),
    "a root at zero: the loss is finite, its gradient is not": trained(
        *("not finite", 100, 0),
        **dict(data=rows, net=partial(Patches, MixerBlock), optimizer=of(NAdam, lr=1e-3), steps=150, action="clamp"),
        fault=usual_again(100, with_distance_from_itself),
    ),
    "an empty image divided by its deviation, an LSTM": trained(
        *("not finite", 120, 0),
        **dict(data=rows, net=partial(Recurrent, nn.LSTM), optimizer=of(AdamW, lr=3e-3), steps=160, monitor=20),
        fault=on(120, inputs(standardised_by_nothing)),
    ),
}

OTHERS = {
    "a batch of tumours in millimetres": trained(
        *("unusual batch", 130, 0),
        **dict(data=tumours, net=partial(logistic, 30, 2), optimizer=of(SGD, lr=0.01, momentum=0.9)),
        **dict(steps=170, action="clamp"),
        fault=on(130, inputs(lambda x: 20 * x + 60)),
    ),
    "three batches of counts that were summed over fifty texts": trained(
        *("unusual batch", 100, 1),
        **dict(data=counts, net=partial(logistic, 300, 6), optimizer=of(Adam, lr=3e-3), steps=150, batch=64),
        fault=on(range(100, 103), inputs(lambda x: 50 * x)),
        cadence="every",
    ),
    "wine in batches of 59: one sample is left": trained(
        *("smaller batch", 3, 24),
        **dict(data=wine, net=partial(logistic, 13, 3), optimizer=of(SGD, lr=0.4), steps=80, batch=59, action="clamp"),
        drop_last=False,
    ),
}
