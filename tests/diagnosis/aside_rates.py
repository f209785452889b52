"""Learning rates: jumps, ramps, and warm restarts."""

import math
from functools import partial

from aside_faults import during, rate_jump, since
from aside_lightning import fit
from aside_nets import GPT, blobs, cnn, digits, images, linear, mislabelled, mlp, sequences, standardised
from aside_scenario import Scenario, of, trained
from pytorch_optimizer import Lion
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
)


def head_apart(lr):
    def groups(model):
        *body, head = model.children()
        parameters = [p for part in body for p in part.parameters()]
        return Adam([{"params": parameters}, {"params": head.parameters(), "name": "head"}], lr=lr)

    return groups


def head_times(factor):
    def change(t):
        t.optimizer.param_groups[1]["lr"] *= factor

    return change


def times(factor):
    return lambda t: t.rates_times(factor)


def by(rule):
    """A schedule from a function of the step."""
    return lambda optimizer: LambdaLR(optimizer, rule)


JUMPS = {
    "the learning rate is 30 times as large after a resume": trained(
        *("learning rate jump", 90, 5),
        **dict(data=digits, net=mlp, optimizer=of(AdamW, lr=3e-3), steps=150, resume_at=90, resume=times(30)),
    ),
    "one step at 10,000 times the learning rate": trained(
        *("learning rate jump", 70, 0),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.1), steps=140, fault=rate_jump(70, 1e4, 1)),
    ),
    "the learning rate is 6 times as large from one step on, not far below the limit": trained(
        *("learning rate jump", 60, 15),
        **dict(data=mislabelled, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=0.05, momentum=0.8)),
        **dict(steps=130, batch=128, fault=rate_jump(60, 6), action="clamp"),
    ),
    "five steps at 20 times the rate in a small GPT": trained(
        *("learning rate jump", 80, 1),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=3e-3), batch=32, steps=140, clip=1.0),
        **dict(fault=rate_jump(80, 20, 5), monitor=10),
    ),
    "a LambdaLR that multiplies by a hundred from step 60 on, in Lightning": Scenario(
        *("learning rate jump", 60, 3),
        partial(
            *(fit,),
            **dict(data=digits, net=mlp, optimizer=of(Adam, lr=2e-3), steps=120),
            schedule=by(lambda step: 100 if step >= 60 else 1),
        ),
    ),
    "only the head's rate is 60 times as large, in a CNN with BatchNorm": trained(
        *("learning rate jump", 75, 3),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=head_apart(2e-3), steps=130),
        fault=during([75], head_times(60)),
    ),
    "Lion on blobs, 300 times the rate": trained(
        *("learning rate jump", 64, 1),
        **dict(data=partial(blobs, 0.5), net=linear, optimizer=of(Lion, lr=1e-3), steps=160, batch=128),
        **dict(fault=rate_jump(64, 300, 20), action="clamp"),
    ),
    "RMSprop in a deep tanh network at 15 times its rate, target 0.5": trained(
        *("learning rate jump", 50, 3),
        **dict(data=standardised, net=partial(mlp, 48, 6, bends=nn.Tanh), optimizer=of(RMSprop, lr=1e-4), steps=110),
        **dict(fault=rate_jump(50, 15), target=0.5, cadence="every"),
    ),
    "MultiStepLR with gamma 10 where 0.1 was meant": trained(
        *("learning rate jump", 75, 12),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=0.03, momentum=0.9, nesterov=True), steps=150, batch=128),
        **dict(schedule=partial(MultiStepLR, milestones=[75], gamma=10), action="clamp"),
    ),
}

RAMPS = {
    "a learning rate range test up to 9": trained(
        *("learning rate ramp", 0, 110),
        **dict(data=digits, net=mlp, optimizer=of(SGD, lr=1e-4), steps=120, schedule=partial(ExponentialLR, gamma=1.1)),
    ),
    "a warm-up to 0.05 where a small GPT needs 0.003": trained(
        *("learning rate ramp", 0, 50),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=0.05), batch=32, steps=140, clip=1.0, action="clamp"),
        schedule=by(lambda step: min((step + 1) / 120, 1)),
    ),
    "OneCycle with a peak that is far too high": trained(
        *("learning rate ramp", 0, 28),
        **dict(data=images, net=cnn, optimizer=of(SGD, lr=0.05, momentum=0.9, nesterov=True), steps=150),
        schedule=partial(OneCycleLR, max_lr=1.5, total_steps=150, cycle_momentum=False),
    ),
    "a decay by 1.06 instead of 0.94 a step": trained(
        *("learning rate ramp", 80, 60),
        **dict(data=digits, net=mlp, optimizer=of(Adam, lr=3e-3), steps=200, fault=since(80, times(1.06))),
        **dict(action="clamp", monitor=10),
    ),
    "ExponentialLR that grows by 3 % a step, target 2": trained(
        *("learning rate ramp", 0, 180),
        **dict(data=partial(blobs, 0.4), net=linear, optimizer=of(SGD, lr=0.02), steps=260, target=2.0, batch=32),
        schedule=partial(ExponentialLR, gamma=1.03),
    ),
    "half as much again every ten steps, with Lion": trained(
        *("learning rate ramp", 40, 95),
        **dict(
            data=digits, net=mlp, optimizer=of(Lion, lr=3e-4), steps=170, fault=during(range(40, 170, 10), times(1.5))
        ),
        action="clamp",
    ),
    "a linear ramp without an end, gradients of two batches, target 0.5": trained(
        *("learning rate ramp", 0, 40),
        **dict(data=digits, net=partial(mlp, 64, 2, nn.BatchNorm1d), optimizer=of(SGD, lr=1e-3, momentum=0.9)),
        **dict(steps=120, accumulate=2, batch=32, target=0.5, schedule=by(lambda step: 1 + step * 2)),
    ),
}


def cycles(length, warm_up=0):
    """Cosine to zero, over and over, after a warm-up that comes once."""
    return by(
        lambda step: (
            (step + 1) / warm_up
            if step < warm_up
            else 0.5 * (1 + math.cos(math.pi * (step % length - warm_up * (step < length)) / length))
        )
    )


RESTARTS = {
    "cosine with restarts, a small GPT that needs less by now": trained(
        *("warm restart", 40, 8),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=0.014), batch=32, steps=120),
        schedule=partial(CosineAnnealingWarmRestarts, T_0=40, T_mult=2),
    ),
    "a new process with a fresh Adam, a CNN with BatchNorm, target 0.5": trained(
        *("warm restart", 80, 3),
        **dict(data=images, net=partial(cnn, nn.BatchNorm2d), optimizer=of(Adam, lr=6e-3), steps=130, resume_at=80),
        **dict(resume=lambda t: t.optimizer.state.clear(), action="clamp", target=0.5),
        schedule=by(lambda step: min((step + 1) / 20, 1)),
    ),
    "a warm-up and then cosine with restarts, two blocks": trained(
        *("warm restart", 35, 10),
        **dict(data=sequences, net=partial(GPT, 32, 2), optimizer=of(AdamW, lr=8e-3), batch=32, steps=90),
        **dict(schedule=cycles(35, warm_up=5), action="clamp", clip=1.0),
    ),
    "resumed with a fresh AdamW, its moments lost": trained(
        *("warm restart", 100, 3),
        **dict(data=standardised, net=partial(mlp, 64, 3, nn.LayerNorm), optimizer=of(AdamW, lr=2.5e-3), steps=160),
        **dict(resume_at=100, resume=lambda t: t.optimizer.state.clear(), clip=1.0),
    ),
    "resumed without its schedule, so back at the rate of the beginning": trained(
        *("warm restart", 110, 10),
        **dict(data=sequences, net=GPT, optimizer=of(AdamW, lr=0.015), batch=32, steps=150, action="clamp"),
        **dict(schedule=partial(ExponentialLR, gamma=0.95), resume_at=110),
        resume=lambda t: (t.rates_times(0.015 / t.optimizer.param_groups[0]["lr"]), setattr(t, "schedule", None)),
    ),
    "SGD with restarts, a net that has left its plateau meanwhile": trained(
        *("warm restart", 60, 20),
        **dict(data=digits, net=partial(mlp, 64, 2), optimizer=of(SGD, lr=0.1, momentum=0.9), steps=140),
        schedule=partial(CosineAnnealingWarmRestarts, T_0=60),
    ),
    "the rate goes back up by hand, RMSprop": trained(
        *("warm restart", 100, 30),
        **dict(data=mislabelled, net=partial(mlp, 48, 2), optimizer=of(RMSprop, lr=2e-3), steps=160, action="clamp"),
        schedule=by(lambda step: min((step + 1) / 20, 0.9 ** max(step - 12, 0)) if step < 100 else 1),
    ),
}
