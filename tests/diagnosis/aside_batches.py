"""Batches in which a label or a single sample is wrong."""

from functools import partial

from aside_faults import (
    at,
    during,
    labels_off_by_one,
    labels_shuffled,
    one_label_for_all,
    one_number_is,
    one_sample_times,
)
from aside_lightning import fit
from aside_nets import GPT, blobs, cnn, digits, images, linear, mlp, sequences, standardised
from aside_scenario import Scenario, of, trained
from pytorch_optimizer import Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW

LABELS = {
    "ten batches with their labels shuffled, late in a run": trained(
        *("label noise", 120, 4),
        **dict(data=digits, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=0.05, momentum=0.8)),
        **dict(steps=170, fault=during(range(120, 130), labels_shuffled())),
    ),
    "a corrupt shard: six in ten labels of five batches are wrong": trained(
        *("label noise", 130, 5),
        **dict(data=images, net=cnn, optimizer=of(Adam, lr=8e-3), steps=170, batch=128),
        **dict(fault=during(range(130, 135), labels_shuffled(0.6)), action="clamp", clip=5.0),
    ),
    "labels off by one for eight batches, Adam": trained(
        *("label noise", 110, 6),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=0.011), steps=160, batch=128),
        **dict(fault=during(range(110, 118), labels_off_by_one()), action="clamp"),
    ),
    "three batches of shuffled tokens to be told, a small GPT": trained(
        *("label noise", 120, 4),
        **dict(data=sequences, net=partial(GPT, 32, 2), optimizer=of(SGD, lr=0.07, momentum=0.9), batch=64, steps=150),
        fault=during(range(120, 123), labels_shuffled()),
    ),
    "one label for every sample, on blobs that a plane parts": trained(
        *("label noise", 100, 5),
        **dict(data=partial(blobs, 1.2), net=linear, optimizer=of(SGD, lr=0.04, momentum=0.9), steps=150, batch=256),
        **dict(fault=during(range(100, 106), one_label_for_all()), monitor=20),
    ),
    "half of the labels wrong for twenty steps, LayerNorm, target 0.5": trained(
        *("label noise", 120, 8),
        **dict(
            data=standardised,
            net=partial(mlp, 64, 2, nn.LayerNorm),
            optimizer=of(SGD, lr=0.025, momentum=0.9),
            steps=170,
        ),
        **dict(fault=during(range(120, 140), labels_shuffled(0.5)), target=0.5, action="clamp"),
    ),
}

OUTLIERS = {
    "one sample 200 times as large and of the wrong sign": trained(
        *("outlier sample", 80, 0),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.1), steps=140, fault=at(80, one_sample_times(-200))),
    ),
    "one sample with the wrong label and 20 times as large, in a fitted batch": trained(
        *("outlier sample", 120, 1),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=5e-3), steps=170, batch=32, action="clamp"),
        fault=at(120, one_sample_times(20, wrong_label=True)),
    ),
    "one pixel of 10,000, a CNN": trained(
        *("outlier sample", 90, 0),
        **dict(data=images, net=cnn, optimizer=of(Adam, lr=3e-3), steps=140, fault=at(90, one_number_is(1e4))),
    ),
    "one sample 60 times as large on blobs, Lion, target 0.5": trained(
        *("outlier sample", 70, 0),
        **dict(data=partial(blobs, 0.5), net=linear, optimizer=of(Lion, lr=3e-3), steps=120, batch=128, target=0.5),
        **dict(cadence="every", fault=at(70, one_sample_times(60)), action="clamp"),
    ),
    "one sample 1000 times as large where AdamW and clipping hold the step short": trained(
        *("outlier sample", 100, 0),
        **dict(data=standardised, net=partial(mlp, 64, 2), optimizer=of(AdamW, lr=2e-3), steps=150, clip=1.0),
        **dict(cadence="every", fault=at(100, one_sample_times(1000))),
    ),
    "one sample 30 times as large, twice in a row, in Lightning": Scenario(
        *("outlier sample", 75, 0),
        partial(
            *(fit,),
            **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.05, momentum=0.9), steps=120, batch=32),
            **dict(fault=during([75, 76], one_sample_times(30)), clip=2.0, action="observe"),
        ),
    ),
}
