"""Learning rates of the unseen runs: jumps, ramps, warm restarts."""

import math
from functools import partial

from aside_scenario import of, trained
from torch.optim import SGD, Adagrad, AdamW, NAdam, RAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, CyclicLR, LambdaLR, StepLR
from unseen_faults import matches, one_step, optimizer_anew, rates, schedule_gone
from unseen_nets import BagOfWords, MixerBlock, Patches, Recurrent, TwoTowers, logistic, papers, rows, tumours


def words_and_head(model):
    return Adagrad([{"params": model.words.parameters(), "lr": 0.05}, {"params": model.head.parameters()}], lr=0.02)


def by(rule):
    return partial(LambdaLR, lr_lambda=rule)


JUMPS = {
    "two towers go on with a rate in other units, 40 times as large": trained(
        *("learning rate jump", 130, 2),
        **dict(data=rows, net=TwoTowers, loss=matches, optimizer=of(RAdam, lr=2e-3), steps=190, batch=96),
        **dict(resume_at=130, resume=rates(40), action="clamp"),
    ),
    "a step of the schedule multiplies by ten instead of a tenth": trained(
        *("learning rate jump", 120, 12),
        **dict(data=rows, net=Patches, optimizer=of(AdamW, lr=2e-3, weight_decay=0.05), steps=170, clip=1.0),
        **dict(schedule=partial(StepLR, step_size=120, gamma=10.0), action="clamp"),
    ),
    "for one step the embedding has 3000 times its rate": trained(
        *("learning rate jump", 220, 0),
        **dict(data=papers, net=BagOfWords, optimizer=words_and_head, steps=300, batch=32),
        **dict(fault=one_step(220, 3000, 0), monitor=25),
    ),
}

RAMPS = {
    "a range test of the rate, from 1e-5 to 1": trained(
        *("learning rate ramp", 0, 200),
        **dict(data=rows, net=partial(Patches, MixerBlock), optimizer=of(AdamW, lr=1e-5), steps=200),
        schedule=by(lambda step: 10 ** (5 * step / 200)),
    ),
    "a triangle of the rate that goes up to 6": trained(
        *("learning rate ramp", 0, 150),
        **dict(data=tumours, net=partial(logistic, 30, 2), optimizer=of(SGD, lr=0.01), steps=200, batch=48),
        schedule=partial(CyclicLR, base_lr=0.01, max_lr=6.0, step_size_up=150, cycle_momentum=False),
        **dict(action="clamp", monitor=20),
    ),
    "a warm-up that nobody ends, from step 80 on": trained(
        *("learning rate ramp", 80, 200),
        **dict(data=rows, net=Recurrent, optimizer=of(NAdam, lr=1e-3), steps=300, batch=128),
        schedule=by(lambda step: 1 if step < 80 else 1.02 ** (step - 80)),
    ),
}

GRU_ADAM = of(AdamW, lr=5e-3, betas=(0.9, 0.98))

RESTARTS = {
    "a cosine begins anew at its full height, in a patch transformer": trained(
        *("warm restart", 150, 30),
        **dict(data=rows, net=Patches, optimizer=of(AdamW, lr=6e-3, betas=(0.9, 0.95)), steps=200, batch=128),
        action="clamp",
        schedule=partial(CosineAnnealingWarmRestarts, T_0=150),
    ),
    "the checkpoint of a GRU has no state of its optimizer": trained(
        *("warm restart", 150, 4),
        **dict(data=rows, net=Recurrent, optimizer=GRU_ADAM, steps=200, batch=128),
        **dict(resume_at=150, resume=optimizer_anew(GRU_ADAM), action="clamp"),
    ),
    "a resume without its schedule: the rate is that of the first step": trained(
        *("warm restart", 300, 30),
        **dict(data=papers, net=BagOfWords, steps=360, batch=32, clip=5.0, monitor=30),
        **dict(optimizer=of(NAdam, lr=0.013, betas=(0.9, 0.95))),
        **dict(schedule=partial(CosineAnnealingLR, T_max=320), resume_at=300, resume=schedule_gone(0.013)),
    ),
}


def hill(length, top=0.3):
    """Up in a straight line, down in a cosine."""
    up = int(top * length)

    def rule(step):
        return (step + 1) / up if step < up else 0.5 * (1 + math.cos(math.pi * (step - up) / (length - up)))

    return by(rule)
