"""When a step is measured, on numbers made by hand; benchmarks/cadence_safety.py has real runs."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from reference import dense_r, mlp, parameters_of
from torch.overrides import _get_current_function_mode_stack

import stepguard
from stepguard.guard.trigger import Trigger
from stepguard.records import Memory


def steps(r_of, norms_of=lambda step: [1.0], count=200, target=1.0, trigger=None, start=0):
    """Which steps are measured, of a run whose every r is known."""
    trigger, measured = trigger or Trigger(target, budget=0.03), {}
    for step in range(start, start + count):
        why = trigger.due(step, norms_of(step))
        if why:
            measured[step] = why
            trigger.reading(step, r_of(step), norms_of(step))
    return measured


@pytest.mark.parametrize("target", [1.0, 0.01, 50.0])
def test_in_calm_weather_few(target):
    measured = steps(lambda step: 0.02 * target, target=target)
    assert list(measured) == [*range(10), 73, 137]
    assert set(measured.values()) == {"first", "old"}


@pytest.mark.parametrize("factor", [6.0, 1e3, 1e8, math.inf, math.nan])
def test_a_jump_of_the_norm_is_measured_at_once_and_so_are_the_steps_after_it(factor):
    at = [factor if step == 91 else 1.0 for step in range(120)]
    measured = steps(lambda step: 0.02 * at[step], lambda step: [at[step]], 120)
    if not factor < 22:  # where 0.02 of the target becomes 0.45 of it
        assert [step for step in measured if step > 80] == list(range(91, 112))
    else:
        assert 91 not in measured


def test_a_group_that_jumps_alone_is_measured_at_once():
    norms = [[1.0, 0.02 * (40 if step == 91 else 1)] for step in range(120)]
    assert math.hypot(*norms[91]) < 1.3  # next to nothing to see of it in the whole
    assert 91 in steps(lambda step: 0.02, norms.__getitem__, 120)
    assert 91 not in steps(lambda step: 0.02, lambda step: [math.hypot(*norms[step])], 120)


@pytest.mark.parametrize("doubling", [40, 20, 10])
def test_kappa_that_grows_is_met_before_the_limit(doubling):
    r_of = lambda step: 0.01 * 2 ** (max(step - 30, 0) / doubling)  # noqa: E731
    count = 30 + 8 * doubling
    measured = steps(r_of, count=count)
    beyond = [step for step in range(count) if r_of(step) > 1]
    assert beyond and set(beyond) <= set(measured)
    assert len(measured) < count / 2


def test_how_near_is_near_is_learned():
    steady = steps(lambda step: 0.3, count=300)
    assert len(steady) < 60  # always the same: 0.3 of the target is far enough from it
    dice = random.Random(0)
    noisy = [0.3 * math.exp(dice.gauss(0, 0.35)) for _ in range(300)]
    assert len(steps(noisy.__getitem__, count=300)) > 150
    assert len(steps(lambda step: 0.7, count=300)) == 300


def test_readings_that_cost_much_come_less_often():
    trigger = Trigger(1.0, budget=0.03)
    for _ in range(5):
        trigger.budget.plain_step(1e-3)
        trigger.budget.reading(5e-3)
    measured = list(steps(lambda step: 1e-6, count=800, trigger=trigger))
    assert measured[10:] == [265, 521, 777]  # 5 / 0.03 = 167, and the next power of two is 256


def test_a_dear_reading_keeps_nobody_from_measuring_near_the_limit():
    trigger = Trigger(1.0, budget=0.03)
    for _ in range(5):
        trigger.budget.plain_step(1e-3)
        trigger.budget.reading(1.0)
    assert len(steps(lambda step: 0.9, count=100, trigger=trigger)) == 100


def test_a_step_of_no_length_teaches_nothing():
    trigger = Trigger(1.0, budget=0.03)
    trigger.reading(0, 0.0, [0.0])
    assert trigger.due(20, [1.0])


def test_a_kappa_that_leapt_is_no_trouble_where_r_is_nothing():
    trigger = Trigger(1.0, budget=0.03)
    for step, r in [(0, 1e-30), (4, 1e-12)]:
        trigger.reading(step, r, [1.0])
    trigger.budget.every = 4096
    assert trigger._growth > 10
    assert [trigger.due(step, [1e-200]) for step in (30, 400, 3000)] == [None, "old", "old"]


def test_state_goes_on_where_it_was():
    dice = random.Random(1)
    r = [0.2 * math.exp(dice.gauss(0, 0.4)) for _ in range(400)]
    whole = list(steps(r.__getitem__, count=400))
    first, second = Trigger(1.0, 0.03), Trigger(1.0, 0.03)
    begun = list(steps(r.__getitem__, count=150, trigger=first))
    second.load_state_dict(first.state_dict())
    assert begun + list(steps(r.__getitem__, count=250, trigger=second, start=150)) == whole


def train(guard_settings, factor, count=140, late=False):
    """Steps of a classifier whose learning rate jumps; what was recorded, and the true r of every step that was made.

    ``late`` sets the learning rate after the backward pass, where nobody can know of it before.
    """
    torch.manual_seed(0)
    model, memory, taken = mlp(), Memory(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with stepguard.attach(model, optimizer, recorders=[memory], strict=True, **guard_settings):
        for step in range(count):
            x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
            old = parameters_of(model)
            optimizer.zero_grad()
            if not late:
                optimizer.param_groups[0]["lr"] = 1e-3 * factor(step)
            F.cross_entropy(model(x), y).backward()
            optimizer.param_groups[0]["lr"] = 1e-3 * factor(step)
            optimizer.step()
            taken.append(dense_r(model, old, parameters_of(model), x))
    return memory, taken


@pytest.mark.parametrize("factor", [1000.0, 1e4])
@pytest.mark.parametrize("length", [1, 100])
def test_no_step_of_a_spike_gets_through(factor, length):
    memory, taken = train({"clamp_to": "limit"}, lambda step: factor if 97 <= step < 97 + length else 1.0)
    assert len([r for r in memory.readings if r.step < 97]) < 20
    assert max(taken) < 1.001 and taken[97] == pytest.approx(1.0, rel=1e-3)
    assert "prediction" not in {r.estimator for r in memory.readings}  # its rate was known before its forward


@pytest.mark.parametrize("length", [1, 100])
def test_a_step_that_is_suddenly_long_is_made_harmless_by_its_prediction(length):
    memory, taken = train({"clamp_to": "limit"}, lambda step: 1e4 if 97 <= step < 97 + length else 1.0, late=True)
    predicted = [r for r in memory.readings if r.estimator == "prediction"]
    assert [(r.step, r.why) for r in predicted] == [(97, "near")] and predicted[0].r > 10
    assert 0.1 < taken[97] < 1 and max(taken) < 1.001  # as harmless as those that are not measured
    assert [e.kind for e in memory.events if e.step == 97] == ["clamp"]
    assert {98, 99, 100} <= {r.step for r in memory.readings if r.estimator != "prediction"}


def test_to_observe_leaves_even_that_alone():
    memory, taken = train({"action": "observe"}, lambda step: 1e4 if step == 97 else 1.0, late=True, count=98)
    last = memory.readings[-1]
    assert (last.step, last.estimator, last.scale) == (97, "prediction", 1.0)
    assert last.breach and taken[97] / 3 < last.r < 3 * taken[97]  # how old what it is predicted by is, depends on time
    assert memory.events[-1].kind == "breach"


def test_calm_steps_are_not_watched(batch):
    model, memory, ups = mlp(), Memory(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with stepguard.attach(model, optimizer, recorders=[memory], strict=True):
        for _ in range(80):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch[0]), batch[1])
            ups.append(bool(_get_current_function_mode_stack()))
            loss.backward()
            optimizer.step()
    read = [r.step for r in memory.readings]
    assert read == [*range(10), read[10]] and [step for step, up in enumerate(ups) if up] == read


def test_a_layer_that_begins_to_move_holds_nothing_up(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.0}], lr=1e-3
    )
    with stepguard.attach(model, optimizer, recorders=[memory], strict=True):
        for step in range(40):
            if step == 30:
                optimizer.param_groups[1]["lr"] = 1e-3
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    assert not [e for e in memory.events if e.kind in ("clamp", "withheld")]
    assert {30, 31} <= {r.step for r in memory.readings}


def test_to_drive_takes_every_step():
    memory, taken = train({"action": "drive", "target": 0.1}, lambda step: 1.0, count=30)
    assert len(memory.readings) == 30 and taken == pytest.approx([0.1] * 30, rel=1e-3)


def test_it_says_why_and_that_it_went_over_the_budget(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with stepguard.attach(model, optimizer, recorders=[memory], strict=True):
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    assert {r.why for r in memory.readings} == {"first", "near"}
    assert sum("more than the 3% of the time" in e.message for e in memory.events) == 1


def test_readings_tell_the_cost_since_the_last_one():
    readings = train({}, lambda step: 1.0, count=100)[0].readings
    calm = [r for r in readings if r.why == "old"]
    assert calm and all(0 < r.cost_share < 1 for r in readings[1:]) and readings[0].cost_share is None


@pytest.mark.parametrize("budget", [0.0, -1, 1.5, True, "3%"])
def test_a_wrong_budget_is_told_at_once(budget):
    model = mlp()
    with pytest.raises(ValueError, match="share of the time"):
        stepguard.attach(model, torch.optim.SGD(model.parameters(), 0.1), budget=budget)
