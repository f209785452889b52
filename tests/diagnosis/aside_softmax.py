"""Softmax collapse: in half precision without a step over the target, or by logits that are scaled up."""

from functools import partial

import torch
from aside_faults import in_bfloat16, in_half, loss_during
from aside_nets import blobs, cnn, digits, images, linear, mlp, standardised
from aside_scenario import of, trained
from aside_training import cross_entropy
from torch import nn
from torch.optim import SGD, Adam, AdamW


def outside_autocast(z, y):
    """The logits come in bfloat16, and the loss is taken as they are."""
    with torch.autocast("cpu", enabled=False):
        return cross_entropy(z, y)


def colder(t):
    """The temperature of the logits falls by three percent a step from step 60 on."""
    t.loss = partial(at_temperature, temperature=0.97 ** max(t.step - 60, 0))


def at_temperature(z, y, temperature):
    return cross_entropy(z / temperature, y)


SOFTMAX = {
    "the loss in float16, on blobs that a plane parts": trained(
        *("softmax collapse", 0, 190, False),
        **dict(data=partial(blobs, 2.0), net=linear, optimizer=of(SGD, lr=0.05), steps=200, monitor=5, batch=128),
        loss=in_half,
    ),
    "z.half() from step 80 on": trained(
        *("softmax collapse", 80, 80, False),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=5e-3), steps=200, monitor=5, action="clamp"),
        fault=loss_during(range(80, 200), in_half),
    ),
    "the loss in bfloat16, MLP with LayerNorm": trained(
        *("softmax collapse", 0, 150, False),
        **dict(data=standardised, net=partial(mlp, 64, 2, nn.LayerNorm), optimizer=of(AdamW, lr=3e-3), steps=200),
        **dict(monitor=5, loss=in_bfloat16, batch=128),
    ),
    "a loss outside of autocast, CNN": trained(
        *("softmax collapse", 0, 200, False),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(Adam, lr=3e-3), steps=240, monitor=10),
        **dict(autocast=torch.bfloat16, loss=outside_autocast, action="clamp"),
    ),
    "float32, an MLP that goes on after it has learned all": trained(
        *("softmax collapse", 0, 280, False),
        **dict(
            data=standardised, net=partial(mlp, 64, 2), optimizer=of(Adam, lr=4e-3), steps=300, monitor=5, batch=128
        ),
    ),
    "float32, the temperature falls": trained(
        *("softmax collapse", 60, 120, False),
        **dict(data=partial(blobs, 2.0), net=linear, optimizer=of(Adam, lr=1e-3), steps=200, monitor=5, batch=128),
        **dict(fault=colder, action="clamp"),
    ),
}
