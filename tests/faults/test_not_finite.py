"""NaN and inf at a random step, wherever they come in: that step is withheld, and nothing of them stays."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from fault_run import Run, X, Y, hooks_of


def step(run, loss_factor=1.0, x=X, between=lambda: None):
    run.optimizer.zero_grad()
    (loss_factor * F.cross_entropy(run.model(x), Y)).backward()
    between()
    run.optimizer.step()


def in_the_batch(run, value):
    x = X.clone()
    x[2, 3] = value
    step(run, x=x)


def in_the_loss(run, value):
    step(run, loss_factor=value)


def in_one_gradient(run, value):
    def spoil():
        run.model.head.weight.grad[1, 2] = value

    step(run, between=spoil)


def in_the_learning_rate(run, value):
    group = run.optimizer.param_groups[0]
    found, group["lr"] = group["lr"], value
    step(run)
    group["lr"] = found


# Where the value comes in, from a run and the value to a step.
PLACES = {
    "the batch": in_the_batch,
    "the loss": in_the_loss,
    "one gradient": in_one_gradient,
    "the update": in_the_learning_rate,
}
STEPS = 14


@pytest.mark.parametrize("cadence", ["auto", "every"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", PLACES)
def test_the_step_is_withheld_and_training_goes_on(place, value, cadence):
    run = Run({"cadence": cadence})
    bad = random.Random(f"{place} {value} {cadence}").randrange(STEPS)
    for index in range(STEPS):
        before = [*run.parameters(), *run.buffers()]
        if index == bad:
            PLACES[place](run, value)
            assert run.guard.last.step == bad and run.guard.last.scale == 0 and not math.isfinite(run.guard.last.r)
            after = [*run.parameters(), *run.buffers()]
            spoilt = place not in ("one gradient", "the update")  # there the forward was sound, and its averages are
            assert all(map(torch.equal, before, after)) or (not spoilt and all(t.isfinite().all() for t in after))
            assert all(map(torch.equal, before, run.parameters()))
        else:
            step(run)
    assert [e.step for e in run.memory.events if e.kind == "withheld"] == [bad]
    state = [v for s in run.optimizer.state.values() for v in s.values()]
    assert all(t.isfinite().all() for t in [*run.parameters(), *run.buffers(), *state])
    assert run.guard.step == STEPS
    run.detach()
    assert not hooks_of(run)


def test_a_parameter_that_is_none_stays_alone():
    """What theta_old has lost already nobody can give back; it does not spread, and every step says so."""
    run = Run({"target": 0.02}, monitored=False)
    run.steps(3)
    with torch.no_grad():
        run.model.head.bias[1] = math.nan
    before = run.parameters()
    run.steps(4)
    after = run.parameters()
    assert all(torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5)) for a, b in zip(before, after, strict=True))
    assert sum(int(t.isnan().sum()) for t in after) == 1
    assert [(e.step, e.kind) for e in run.memory.events if e.kind == "withheld"] == [
        (i, "withheld") for i in range(3, 7)
    ]
    run.detach()
