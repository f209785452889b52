"""Headroom and forecast: the largest safe learning rate now, and when the one to come will be too large."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from torch.optim import lr_scheduler

import stepguard
from stepguard.guard.outlook import HORIZON, Outlook, SteppedEvery, rates_ahead, rates_from
from stepguard.records import Memory, Reading, metric_values

SCHEDULERS = {
    "step": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda s: 1 / (1 + s), lambda s: min(s / 10, 1.0)]),
    "cosine": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 11),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[1.0, 3.0], total_steps=40),
    "in sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.01, 1.0, 8), lr_scheduler.ExponentialLR(o, 0.9)], [8]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
}


def optimizer_of(*rates):
    groups = [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("start", [0, 5, 20])
def test_a_scheduler_is_looked_ahead_of_and_not_touched(name, start):
    optimizer = optimizer_of(0.1, 0.4)
    scheduler = SCHEDULERS[name](optimizer)
    for _ in range(start):
        optimizer.step()
        scheduler.step()
    before = str(scheduler.state_dict()), str(optimizer.state_dict())
    foreseen = list(itertools.islice(rates_ahead(scheduler, optimizer), 15))
    assert before == (str(scheduler.state_dict()), str(optimizer.state_dict()))
    real = []
    for _ in range(15):
        real.append(max(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    assert foreseen == pytest.approx(real)


def test_a_schedule_that_ends_is_known_up_to_there():
    optimizer = optimizer_of(0.1)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=30)
    foreseen = list(rates_ahead(scheduler, optimizer))
    real = [optimizer.param_groups[0]["lr"]]
    with pytest.raises(ValueError, match="total"):
        while True:
            optimizer.step()
            scheduler.step()
            real.append(optimizer.param_groups[0]["lr"])
    assert foreseen == pytest.approx(real)


def crossings(outlook, r, rate=lambda step: 0.1, every=1, count=400):
    told = {}
    for step in range(0, count, every):
        found = outlook.reading(step, r(step), rate(step))
        if found is not None:
            told[step] = found
    return told


def test_the_learning_rate_to_come():
    def rate(step):
        return 1e-3 * (step + 1)

    told = crossings(Outlook(1.0, optimizer_of(1e-3), rate), lambda s: 3.0 * rate(s), rate)
    ((step, crossing),) = told.items()
    assert crossing == 333 and crossing - step in range(HORIZON - 6, HORIZON + 1)


def test_a_trend_of_its_own():
    told = crossings(Outlook(1.0, optimizer_of(0.1)), lambda s: 0.1 * math.exp(0.01 * s), every=4)
    ((step, crossing),) = told.items()
    assert crossing == pytest.approx(230, abs=3) and 160 <= step < 200


def test_what_is_steady_or_falls_is_no_news():
    for r in (lambda s: 0.9, lambda s: 0.9 * math.exp(-0.01 * s), lambda s: 0.5 * (1 + 0.5 * math.sin(s))):
        assert crossings(Outlook(1.0, optimizer_of(0.1)), r) == {}


def test_the_first_steps_make_no_trend():
    told = crossings(Outlook(1.0, optimizer_of(0.1)), lambda s: 0.01 * min(1.3**s, 10.0), count=300)
    assert told == {}


def test_a_run_that_is_beyond_its_target_is_told_so_by_its_breaches():
    assert crossings(Outlook(1.0, optimizer_of(0.1)), lambda s: 2.0) == {}


@pytest.mark.parametrize("of", ["scheduler", "function"])
def test_in_a_run(of):
    def factor(step):
        return 1.05**step

    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = lr_scheduler.LambdaLR(optimizer, factor)
    schedule = scheduler if of == "scheduler" else lambda step: 1e-3 * factor(step)
    with stepguard.attach(model, optimizer, schedule=schedule, recorders=[memory], strict=True):
        for _ in range(220):
            x, y = torch.randn(16, 12), torch.randint(0, 5, (16,))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()
    forecasts = [e for e in memory.events if e.kind == "forecast"]
    first = next(r.step for r in memory.readings if r.breach)
    assert forecasts and forecasts[0].step < first - 10
    assert "will pass the target of 1 at about step" in forecasts[0].message
    foreseen = int(forecasts[0].message.split("about step ")[1].split(",")[0])
    assert abs(foreseen - first) < 30


def test_headroom_is_the_rate_at_which_r_would_be_at_the_target():
    reading = Reading(3, r=0.2, tau=1.0, rho=5.0, spread=0.6, scale=1.0, lr=0.1, lr_applied=0.1, target=0.5)
    assert reading.lr_safe == pytest.approx(0.25)
    assert metric_values(reading)["stepguard/lr_safe"] == pytest.approx(0.25)
    for r in (0.0, math.nan, math.inf):
        assert reading._replace(r=r).lr_safe is None and "stepguard/lr_safe" not in metric_values(reading._replace(r=r))


@pytest.mark.parametrize("every", [1, 3, 7])
def test_a_scheduler_that_is_stepped_now_and_then(every):
    optimizer = optimizer_of(0.1)
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.99)
    real, foreseen = [], {}
    for step in range(3000):
        if step % 500 == 123:
            foreseen[step] = list(itertools.islice(rates_from(SteppedEvery(scheduler, every), optimizer, step), 300))
        real.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    for step, rates in foreseen.items():
        assert rates == pytest.approx(real[step : step + 300])


@pytest.mark.parametrize("strict", [False, True])
def test_a_schedule_that_breaks_does_not_break_the_run(strict):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    guard = stepguard.attach(model, optimizer, schedule=lambda step: 1 / 0, cadence="every", strict=strict)

    def train():
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 12)), torch.randint(0, 5, (8,))).backward()
            optimizer.step()

    if strict:
        with pytest.raises(ZeroDivisionError):
            train()
    else:
        with pytest.warns(UserWarning, match="cannot be looked ahead of.*ZeroDivisionError") as said:
            train()
        assert len(said) == 1 and guard.last.step == 29
