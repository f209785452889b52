"""What an optimizer keeps of where the parameters are goes with them when its step is shortened."""

import copy

import pytest
import pytorch_optimizer as po
import torch
from optimizers.measure import measure
from optimizers.training import loss_of, plain, train
from optimizers.zoo import CASES
from reference import mlp
from torch import optim

import stepguard
from stepguard.guard.known_optimizers import known_parts

# Those whose sums and points grow in proportion to the learning rate: exactly what the step at lr_applied leaves.
PROPORTIONAL = {
    "schedule-free SGD": (lambda p: po.ScheduleFreeSGD(p, lr=30.0), ["z"]),
    "schedule-free AdamW": (lambda p: po.ScheduleFreeAdamW(p, lr=3.0), ["z"]),
    "schedule-free around SGD": (lambda p: po.ScheduleFreeWrapper(optim.SGD(p, lr=300.0)), ["z"]),
    "schedule-free inside OrthoGrad": (lambda p: po.OrthoGrad(po.ScheduleFreeSGD(p, lr=30.0)), ["z"]),
    "MADGRAD": (lambda p: po.MADGRAD(p, lr=30.0, eps=0.0), ["s", "grad_sum_sq"]),
    "DAdaptSGD": (lambda p: po.DAdaptSGD(p, d0=30.0), ["s", "z"]),
}


def in_training(optimizer):
    for part in (optimizer, getattr(optimizer, "optimizer", None)):
        if hasattr(part, "train"):
            part.train()
    return optimizer


def one_step(make, action=None, rate=1.0):
    torch.manual_seed(0)
    model = mlp()
    optimizer = in_training(make(list(model.parameters())))
    for group in optimizer.param_groups:
        group["lr"] *= rate
    guard = stepguard.attach(model, optimizer, action=action, strict=True, target=0.05) if action else None
    plain(model, optimizer, 0)
    if guard:
        guard.detach()
    return model, optimizer, guard


@pytest.mark.parametrize("name", PROPORTIONAL)
@pytest.mark.parametrize("action", ["clamp", "drive"])
def test_it_is_where_a_step_at_the_applied_rate_would_have_left_it(name, action):
    make, keys = PROPORTIONAL[name]
    model, optimizer, guard = one_step(make, action)
    assert guard.last.scale < 0.2
    slower_model, slower, _ = one_step(make, rate=guard.last.scale)
    for p, q in zip(model.parameters(), slower_model.parameters(), strict=True):
        for key in keys:
            torch.testing.assert_close(optimizer.state[p][key], slower.state[q][key], rtol=1e-4, atol=1e-6)
    for group, other in zip(optimizer.param_groups, slower.param_groups, strict=True):
        for key in {"weight_sum", "lr_max"} & group.keys():
            assert group[key] == pytest.approx(other[key], rel=1e-4)


def test_those_of_other_packages_are_known_by_a_part_of_their_name():
    theirs = type("AdamWScheduleFree", (optim.AdamW,), {})
    ours = type("Mine", (po.ScheduleFreeAdamW,), {})
    for kind in (theirs, ours):
        ((_, known),) = known_parts(kind(mlp().parameters()))
        assert known.points == ("z",)
    assert not list(known_parts(optim.AdamW(mlp().parameters())))


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_a_step_that_is_withheld_leaves_it_as_it_was(name):
    make, keys = PROPORTIONAL[name]
    torch.manual_seed(0)
    model = mlp()
    optimizer = in_training(make(list(model.parameters())))
    with stepguard.attach(model, optimizer, target=0.05, strict=True):
        plain(model, optimizer, 0)
        before = copy.deepcopy([[optimizer.state[p][key] for key in keys] for p in model.parameters()])
        for group in optimizer.param_groups:
            group["lr"] = float("inf")  # finite gradients, and an update that is not
        plain(model, optimizer, 1)
    after = [[optimizer.state[p][key] for key in keys] for p in model.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_without_it_schedule_free_would_ask_for_the_whole_spike_again(monkeypatch):
    name = "schedule-free AdamW"
    with_points = measure(CASES[name])
    monkeypatch.setattr("stepguard.guard.kept_points.KeptPoints.rescale", lambda *_: None)
    without = measure(CASES[name])
    assert with_points.rebound < 1.5 and with_points.lasts == 0
    assert without.rebound > 500 and without.lasts > 10


# How many times the usual a step is that was brought back to calm. That of a schedule-free one grows by more than its
# rate does, since the rate is also the weight of the step in its average; Lookahead goes back to slow weights later.
CALM = {
    "SGD, momentum and decay": 1.5,
    "AdamW": 1.5,
    "Lion": 1.5,
    "LAMB": 1.5,
    "SOAP": 1.5,
    "DAdaptLion": 2.0,
    "schedule-free AdamW": 5.0,
    "Lookahead": 3.0,
}


@pytest.mark.parametrize("name", CALM)
def test_back_to_calm_is_no_rebound_either(name):
    spike = range(35, 41)
    case = CASES[name]
    how = {"make": case.make, "advance": case.advance, "steps": 55}
    calm = train(**how)
    target = 1.5 * max(step.made for step in calm.steps)
    run = train(**how, spike=spike, target=target)
    assert all(run.steps[i].scale < 0.01 for i in spike)
    assert max(step.made for step in run.steps) <= target * (1 + 1e-3)
    assert max(run.steps[i].made for i in spike) < CALM[name] * max(calm.steps[i].made for i in spike)
    for i in range(spike.stop, 55):
        assert run.steps[i].asked < CALM[name] * calm.steps[i].asked
    assert abs(loss_of(run.model, 99).item() - loss_of(calm.model, 99).item()) < 0.05
