"""Back to calm: an accident leaves no mark, and what is legitimate is not held back."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from torch import nn

import stepguard
from stepguard.guard.calm import Asked, Calm
from stepguard.guard.policy import Settings
from stepguard.records import Memory

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-3),
    "groups": lambda p: torch.optim.Adam([{"params": (q := list(p))[:2], "lr": 2e-3}, {"params": q[2:], "lr": 1e-3}]),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=5e-4),
}


class Run:
    """A run on batches that are the same each time, with a guard unless there are no settings."""

    def __init__(self, make=OPTIMIZERS["SGD"], model=None, **settings):
        torch.manual_seed(0)
        self.model = model or mlp()
        self.optimizer = make(self.model.parameters())
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.memory, self.step, self.weight = Memory(), 0, 1.0
        self.guard = stepguard.attach(
            self.model, self.optimizer, strict=True, recorders=[self.memory], **{"cadence": "every", **settings}
        )

    def train(self, steps, factors=(1.0, 1.0)):
        for _ in range(steps):
            draw = torch.Generator().manual_seed(self.step)
            x, y = torch.randn(16, 12, generator=draw), torch.randint(0, 5, (16,), generator=draw)
            for group, rate, factor in zip(self.optimizer.param_groups, self.rates, factors, strict=False):
                group["lr"] = rate * factor
            self.optimizer.zero_grad()
            (self.weight * F.cross_entropy(self.model(x), y)).backward()
            self.optimizer.step()
            self.step += 1
        return self

    @property
    def scales(self):
        return {r.step: r.scale for r in self.memory.readings}

    def kinds(self):
        return [e.kind for e in self.memory.events]


def close(run, other, **tolerance):
    return all(
        torch.allclose(p, q, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})
        for p, q in zip(run.model.parameters(), other.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cadence", ["every", "auto"])
def test_a_spike_of_the_learning_rate_is_as_if_it_had_not_happened(name, cadence):
    make, factors = OPTIMIZERS[name], (1e4, 1e4)
    calm = Run(make).train(60)
    run = Run(make, cadence=cadence).train(30).train(30, factors)
    assert all(scale < 0.01 for step, scale in run.scales.items() if step >= 30) and run.memory.readings[-1].step == 59
    assert close(run, calm)
    limit = Run(make, clamp_to="limit").train(30).train(30, factors)
    assert not close(limit, calm, atol=1e-2)
    assert all(r.scale * r.r == pytest.approx(1.0) for r in limit.memory.readings[30:])


def test_of_a_run_that_is_shortened_anyway_too():
    def make(p):
        return torch.optim.SGD(p, lr=2.0)

    usual = Run(make).train(60)
    run = Run(make).train(30).train(30, (100.0,))
    assert 5 < sum(scale < 1 for scale in usual.scales.values()) < 55
    assert close(run, usual)
    assert close(Run(make, clamp_to="limit").train(60), usual)


def test_a_gradient_that_explodes_is_brought_to_the_usual_length():
    run = Run().train(30)
    usual = sorted(r.tau for r in run.memory.readings)[15]
    run.weight = 1e4
    run.train(1)
    assert run.guard.last.breach
    assert run.guard.last.scale * run.guard.last.tau == pytest.approx(usual, rel=0.05)


def test_another_kind_of_batch_is_shortened_to_the_limit():
    calm = Calm()
    for _ in range(30):
        calm.scale(0.2, 1.0, Asked(0.1, [1e-3], 4))
    assert calm.scale(5.0, 1.0, Asked(0.12, [1e-3], 4)) == 0.2


@pytest.mark.parametrize(
    "factor",
    {
        "warm-up": lambda step: 0.02 * (step + 1),
        "warm restarts": lambda step: 0.5 * (1 + math.cos(math.pi * (step % 40) / 40)),
        "a rate raised under the limit": lambda step: 1.0 if step < 50 else 3.0,
        "one cycle": lambda step: 0.1 + min(step, 120 - step) / 60,
    }.items(),
    ids=lambda item: item[0],
)
def test_schedules_are_not_held_back(factor):
    runs = [Run(clamp_to=to, target=0.4) for to in ("limit", "calm")]
    for run in runs:
        for step in range(120):
            run.train(1, (factor[1](step),))
    assert runs[0].scales == runs[1].scales


def test_a_warm_up_that_is_shortened_is_not_held_back():
    calm = Calm()
    scales = [calm.scale(1.5, 1.0, Asked(0.01 * step, [1e-4 * step], 4)) for step in range(1, 100)]
    assert scales == [1 / 1.5] * 99


def test_a_rate_that_was_usual_before_comes_back_at_the_limit():
    calm = Calm()
    for rate in [1e-2] * 30 + [1e-5] * 90:
        calm.scale(0.2, 1.0, Asked(10 * rate, [rate], 4))
    assert calm.scale(3.0, 1.0, Asked(0.1, [1e-2], 4)) == pytest.approx(1 / 3)
    assert calm.scale(9.0, 1.0, Asked(0.3, [3e-2], 4)) == pytest.approx(1e-5 / 3e-2)


def test_a_loss_that_changes_scale_ends_at_the_limit():
    run = Run(lambda p: torch.optim.SGD(p, lr=0.05)).train(30)
    run.weight = 500.0
    run.train(1)
    assert run.guard.last.r * run.guard.last.scale < 0.2
    run.train(160)
    late = run.memory.readings[-20:]
    assert all(r.r * r.scale == pytest.approx(1.0) for r in late if r.breach) and any(r.breach for r in late)


def test_thawed_parameters_are_another_run():
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 5))
    model[0].requires_grad_(False)
    run = Run(lambda p: torch.optim.SGD(p, lr=0.01), model).train(40)
    model[0].requires_grad_(True)
    run.weight = 500.0
    run.train(5)
    breaches = [r for r in run.memory.readings[40:] if r.breach]
    assert breaches and all(r.r * r.scale == pytest.approx(1.0) for r in breaches)


def test_a_length_that_is_held_for_long_is_told():
    run = Run().train(30).train(210, (1e4,))
    held = [e for e in run.memory.events if e.kind == "held"]
    assert [e.step for e in held] == [79, 129, 229]
    assert 'clamp_to="limit"' in held[0].message and "the last 50 steps" in held[0].message
    assert "held" not in Run(clamp_to="limit").train(30).train(60, (1e4,)).kinds()


def test_it_says_that_it_went_back_to_calm():
    run = Run().train(30).train(1, (1e4,))
    (clamp,) = [e for e in run.memory.events if e.kind == "clamp"]
    assert "back to calm, scaled by 0.0001, lr 500 -> 0.05" in clamp.message
    limit = Run(clamp_to="limit").train(30).train(1, (1e4,))
    assert "calm" not in limit.memory.events[-1].message


def test_resumed_in_the_middle_of_a_spike():
    whole = Run(OPTIMIZERS["AdamW"]).train(30).train(40, (1e4,))
    first = Run(OPTIMIZERS["AdamW"]).train(30).train(15, (1e4,))
    second = Run(OPTIMIZERS["AdamW"], model=copy.deepcopy(first.model))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.guard.load_state_dict(copy.deepcopy(first.guard.state_dict()))
    second.step = first.step
    second.train(25, (1e4,))
    assert close(second, whole, rtol=0, atol=0)


def test_what_was_saved_stays_as_it_was():
    calm, other = Calm(), Calm()
    for step in range(40):
        calm.scale(0.2, 1.0, Asked(0.1, [1e-3 * (1 + step)], 4))
    saved = calm.state_dict()
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    for one in (calm, other):
        for _ in range(40):
            one.scale(0.2, 1.0, Asked(0.1, [1.0], 4))
    assert saved == kept and calm.state_dict() == other.state_dict()


def test_a_choice_that_makes_no_sense():
    with pytest.raises(ValueError, match='clamp_to must be "limit" .* or "calm" .*, got \'edge\''):
        Settings(clamp_to="edge").checked()
