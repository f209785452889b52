"""Inputs: a whole batch of another kind, a small one, one that is not finite."""

from functools import partial

import torch
from aside_faults import (
    at,
    during,
    inputs_are,
    inputs_times,
    loss_during,
    one_number_is,
    only,
    scaled_in_half,
)
from aside_nets import GPT, blobs, cnn, digits, images, linear, mislabelled, mlp, sequences, standardised
from aside_scenario import of, trained
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop


def one_token(ids):
    return torch.full_like(ids, 15)


def counted_in_sixteenths(x):
    return 16 * x + 5


UNUSUAL = {
    "a batch of pixels up to 255 instead of 1": trained(
        *("unusual batch", 85, 0),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.05), steps=140, fault=at(85, inputs_times(255))),
    ),
    "a batch 10 times as bright, a CNN with momentum": trained(
        *("unusual batch", 100, 0),
        **dict(data=images, net=cnn, optimizer=of(SGD, lr=0.011, momentum=0.9, nesterov=True), steps=150, batch=128),
        **dict(fault=at(100, inputs_times(10)), action="clamp"),
    ),
    "negative images, three batches": trained(
        *("unusual batch", 110, 1),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(SGD, lr=0.03, momentum=0.8), steps=150),
        fault=during(range(110, 113), inputs_are(torch.neg)),
    ),
    "a batch of nothing but one token": trained(
        *("unusual batch", 120, 2),
        **dict(data=sequences, net=GPT, optimizer=of(SGD, lr=0.1, momentum=0.9), batch=32, steps=160, clip=1.0),
        **dict(fault=during(range(120, 122), inputs_are(one_token)), action="clamp"),
    ),
    "a batch that was not standardised": trained(
        *("unusual batch", 95, 1),
        **dict(data=standardised, net=partial(mlp, 64, 3), optimizer=of(AdamW, lr=3e-3), steps=150, batch=32),
        fault=at(95, inputs_are(counted_in_sixteenths)),
    ),
    "blobs in another unit for four batches": trained(
        *("unusual batch", 60, 1),
        **dict(data=partial(blobs, 0.5), net=linear, optimizer=of(RMSprop, lr=5e-3), steps=120, batch=16, monitor=10),
        **dict(fault=during(range(60, 64), inputs_times(30)), action="clamp", target=2.0),
    ),
}

SMALLER = {
    "the last batch of an epoch is one sample": trained(
        # Each eleventh step: whether it matters is up to which sample is left.
        *("smaller batch", 10, 33),
        **dict(data=partial(blobs, 0.4), net=linear, optimizer=of(SGD, lr=0.3), steps=80, batch=50, size=501),
        drop_last=False,
    ),
    "two samples are left at the end of an epoch, with BatchNorm": trained(
        *("smaller batch", 20, 0),
        **dict(data=digits, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=0.1), steps=40, size=1282),
        **dict(action="clamp", drop_last=False),
    ),
    "all but one sample of a batch were filtered out": trained(
        *("smaller batch", 40, 0),
        **dict(data=mislabelled, net=partial(mlp, 128, 1), optimizer=of(SGD, lr=0.25), steps=80, batch=256),
        fault=at(40, only(1)),
    ),
}

NOT_FINITE = {
    "one number of a batch is nan": trained(
        *("not finite", 80, 0),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=3e-3), steps=130, action="clamp"),
        fault=at(80, one_number_is(float("nan"))),
    ),
    "one pixel is inf, and nobody holds the step": trained(
        *("not finite", 70, 0),
        **dict(data=images, net=cnn, optimizer=of(SGD, lr=0.01, momentum=0.9), steps=100),
        fault=at(70, one_number_is(float("inf"))),
    ),
    "a sum of squares overflows in float32": trained(
        *("not finite", 60, 0),
        **dict(data=standardised, net=partial(mlp, 64, 2, nn.LayerNorm), optimizer=of(AdamW, lr=2e-3), steps=90),
        fault=at(60, inputs_times(1e30)),
    ),
    "a loss in half precision overflows by its scale": trained(
        *("not finite", 90, 0),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=2e-3), batch=32, steps=120, action="clamp"),
        fault=loss_during([90], scaled_in_half),
    ),
}
