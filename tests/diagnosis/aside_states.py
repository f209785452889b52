"""What an optimizer or a model carries from step to step: momentum, second moments, weights."""

from functools import partial

from aside_faults import at, loss_during, no_loss, no_second_moment, no_state, setting, since, weights_times
from aside_nets import GPT, cnn, digits, images, mislabelled, mlp, sequences, standardised
from aside_scenario import of, trained
from torch import nn
from torch.optim import SGD, Adam, AdamW

MOMENTUM = {
    "momentum 0.99 from the start, at the rate of plain SGD": trained(
        *("momentum build-up", 0, 50),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.1, momentum=0.99), steps=140),
    ),
    "momentum 0.999 with Nesterov in a tanh network": trained(
        *("momentum build-up", 0, 60),
        **dict(
            data=standardised,
            net=partial(mlp, 64, 2, bends=nn.Tanh),
            optimizer=of(SGD, lr=0.2, momentum=0.999, nesterov=True),
        ),
        **dict(steps=140, batch=128, action="clamp"),
    ),
    "momentum raised from 0.9 to 0.99 in mid-run, a CNN": trained(
        *("momentum build-up", 60, 60),
        **dict(data=images, net=cnn, optimizer=of(SGD, lr=0.015, momentum=0.9), steps=150, batch=128),
        fault=at(60, setting(momentum=0.99)),
    ),
    "momentum 0.995 in a small GPT": trained(
        *("momentum build-up", 0, 100),
        **dict(data=sequences, net=GPT, optimizer=of(SGD, lr=0.15, momentum=0.995), batch=32, steps=160, clip=1.0),
    ),
    "momentum 0.99 with BatchNorm": trained(
        *("momentum build-up", 0, 40),
        **dict(data=digits, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=0.1, momentum=0.99)),
        **dict(steps=140, action="clamp"),
    ),
    "momentum raised to 0.999 on labels of which some are wrong": trained(
        *("momentum build-up", 50, 80),
        **dict(
            data=mislabelled, net=partial(mlp, 64, 2), optimizer=of(SGD, lr=0.12, momentum=0.9), steps=160, batch=256
        ),
        **dict(fault=at(50, setting(momentum=0.999)), action="clamp", monitor=20),
    ),
}

WEIGHTS = {
    "all weights ten times as large at once": trained(
        *("weight blow-up", 80, 2),
        **dict(data=standardised, net=mlp, optimizer=of(SGD, lr=0.1), steps=130, fault=at(80, weights_times(10))),
    ),
    "all weights grow by five percent a step": trained(
        *("weight blow-up", 60, 40),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.1), steps=130, action="clamp"),
        fault=since(60, weights_times(1.05)),
    ),
    "weight decay with the wrong sign": trained(
        *("weight blow-up", 50, 60),
        **dict(data=digits, net=partial(mlp, 64, 2), optimizer=of(SGD, lr=0.05), steps=150),
        fault=at(50, setting(weight_decay=-0.6)),
    ),
    "a checkpoint whose second layer comes back 15 times as large, a CNN": trained(
        *("weight blow-up", 90, 1),
        **dict(data=images, net=cnn, optimizer=of(SGD, lr=0.01, momentum=0.9), steps=140, batch=128, action="clamp"),
        **dict(resume_at=90, resume=weights_times(15, "3.")),
    ),
    "the last norm of a small GPT is 30 times as large": trained(
        *("weight blow-up", 75, 1),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=3e-3), batch=32, steps=130, monitor=10),
        fault=at(75, weights_times(30, "norm.")),
    ),
    "AdamW with decay of the wrong sign": trained(
        *("weight blow-up", 50, 60),
        **dict(data=standardised, net=partial(mlp, 64, 2), optimizer=of(AdamW, lr=3e-3), steps=140, action="clamp"),
        fault=at(50, setting(weight_decay=-8.0)),
    ),
}


OPTIMIZER = {
    "Adam after a long stretch of padding, its second moment forgotten": trained(
        *("optimizer state", 200, 8),
        **dict(data=mislabelled, net=mlp, optimizer=of(Adam, lr=0.026, betas=(0.9, 0.95)), steps=240),
        fault=loss_during(range(90, 200), no_loss),
    ),
    "the second moment comes back as zeros, its count does not": trained(
        *("optimizer state", 90, 2),
        **dict(data=digits, net=mlp, optimizer=of(AdamW, lr=3e-3), steps=140, resume_at=90, resume=no_second_moment),
        action="clamp",
    ),
    "Adam's state is thrown away in mid-run": trained(
        *("optimizer state", 110, 2),
        **dict(data=standardised, net=partial(mlp, 64, 3, nn.LayerNorm), optimizer=of(Adam, lr=2.2e-3), steps=160),
        fault=at(110, no_state),
    ),
    "an eps of 0.2 is the default again after a resume": trained(
        *("optimizer state", 80, 6),
        **dict(data=images, net=cnn, optimizer=of(Adam, lr=0.02, eps=0.2), steps=130, action="clamp"),
        **dict(resume_at=80, resume=setting(eps=1e-8)),
    ),
    "beta2 is 0.1 after a resume, small batches": trained(
        *("optimizer state", 90, 30),
        **dict(data=standardised, net=mlp, optimizer=of(AdamW, lr=0.012), batch=16, steps=150),
        **dict(resume_at=90, resume=setting(betas=(0.95, 0.1))),
    ),
}
