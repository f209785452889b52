"""Runs in which nothing goes wrong, as noisy as they are."""

import math
from functools import partial

import torch
from aside_faults import rate_jump
from aside_lightning import fit
from aside_nets import GPT, blobs, cnn, digits, images, linear, mislabelled, mlp, sequences, standardised
from aside_scenario import Scenario, of, trained
from pytorch_optimizer import Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, OneCycleLR


def warm_up_and_decay(step):
    return (step + 1) / 20 if step < 20 else 0.5 * (1 + math.cos(math.pi * (step - 20) / 180))


HEALTHY = {
    "batches of sixteen, noisy": trained(
        *("healthy", None, 0),
        **dict(data=mislabelled, net=mlp, optimizer=of(SGD, lr=0.05), steps=400, batch=16, drop_last=False),
    ),
    "a small GPT with warm-up, cosine decay, weight decay and clipping": trained(
        *("healthy", None, 0),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=5e-3, weight_decay=0.1), batch=32, steps=200, clip=1.0),
        schedule=partial(LambdaLR, lr_lambda=warm_up_and_decay),
    ),
    "a harmless doubling of the rate": trained(
        *("healthy", None, 0),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=2e-3), steps=200, fault=rate_jump(100, 2), monitor=10),
    ),
    "stopped and resumed with everything that belongs to it": trained(
        *("healthy", None, 0),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(AdamW, lr=2e-3), steps=160, resume_at=85),
        action="clamp",
    ),
    "Adam from scratch, whose first steps are near the limit": trained(
        *("healthy", None, 0),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(Adam, lr=0.01), steps=120),
    ),
    "a high rate with LayerNorm, near the limit now and then": trained(
        *("healthy", None, 0),
        **dict(data=standardised, net=partial(mlp, 64, 3, nn.LayerNorm), optimizer=of(Adam, lr=4e-3), steps=60),
        action="clamp",
    ),
    "OneCycle, a CNN": trained(
        *("healthy", None, 0),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(SGD, lr=0.01, momentum=0.9), steps=160),
        schedule=partial(OneCycleLR, max_lr=0.05, total_steps=160),
    ),
    "Lion under bfloat16 autocast": trained(
        *("healthy", None, 0),
        **dict(data=digits, net=partial(mlp, 64, 2), optimizer=of(Lion, lr=3e-4), steps=200, autocast=torch.bfloat16),
        **dict(batch=128, action="clamp"),
    ),
    "in Lightning, target 0.5": Scenario(
        *("healthy", None, 0),
        partial(
            *(fit,),
            **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.05, momentum=0.9), steps=150, target=0.5),
            **dict(clip=1.0, batch=128),
        ),
    ),
    "gradients of four batches, some labels wrong": trained(
        *("healthy", None, 0),
        **dict(data=mislabelled, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=0.03, momentum=0.9)),
        **dict(steps=120, accumulate=4, batch=32),
    ),
    "restarts of a cosine that stays far below the limit": trained(
        *("healthy", None, 0),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=2e-3), batch=64, steps=160, monitor=20),
        schedule=partial(CosineAnnealingWarmRestarts, T_0=50),
    ),
    "RMSprop on overlapping blobs, every step measured, target 2": trained(
        *("healthy", None, 0),
        **dict(data=partial(blobs, 0.4), net=linear, optimizer=of(RMSprop, lr=5e-3), steps=200, target=2.0),
        cadence="every",
    ),
    "driven at a tenth of the limit": trained(
        *("healthy", None, 0),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=1e-3), steps=150, target=0.1, action="drive"),
    ),
}
