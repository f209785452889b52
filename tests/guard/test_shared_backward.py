"""Two optimizers that share a backward pass: each update is seen from where the gradients were taken."""

import copy
import warnings
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from matrix.task import Task, reference_r
from torch import nn

import stepguard
from stepguard.records import Memory


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x))


FORWARDS = {
    "the model is called": lambda model, x: model(x),
    "its parts are called": lambda model, x: model.head(model.body(x)),
    "a part is a function": lambda model, x: F.linear(model.body(x), model.head.weight, model.head.bias),
}
SETTINGS = {
    "forward mode": {"cadence": "every"},
    "a secant": {"cadence": "every", "screen": True},
    "whenever it may matter": {"cadence": "auto"},
}


@pytest.fixture
def attached():
    """Attach, until the test is over: a guard that is forgotten goes on looking."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(stepguard.attach(*args, **kwargs))


def optimizers_of(model, lr=0.3):
    return [torch.optim.SGD(part.parameters(), lr) for part in (model.body, model.head)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("forward", FORWARDS)
def test_r_is_right_for_both(forward, dtype, settings, batch, attached):
    model, call, x = Net().to(dtype), FORWARDS[forward], batch[0].to(dtype)
    optimizers, found = optimizers_of(model), []
    options = {"action": "observe", "strict": True, **SETTINGS[settings]}
    guards = [attached(model, optimizer, **options) for optimizer in optimizers]
    for _ in range(6):
        model.zero_grad()
        F.cross_entropy(call(model, x).float(), batch[1]).backward()
        before = copy.deepcopy(model)
        for guard, optimizer in zip(guards, optimizers, strict=True):
            start = copy.deepcopy(model)
            optimizer.step()
            moves = zip(model.named_parameters(), start.parameters(), strict=True)
            update = {name: p.detach().double() - old.detach().double() for (name, p), old in moves}
            reference = reference_r(Task(before, None, lambda m: [m(x.double())]), before, update)
            found.append((guard.last.r, reference))
    r, references = zip(*found, strict=True)
    assert r == pytest.approx(references, rel=1e-4 if dtype == torch.float32 and settings != "a secant" else 0.05)


def test_both_steps_end_at_their_target_and_the_log_has_no_gap(batch, attached):
    model, memories = Net(), [Memory(), Memory()]
    optimizers = optimizers_of(model, lr=100.0)
    for optimizer, memory in zip(optimizers, memories, strict=True):
        attached(model, optimizer, target=0.3, clamp_to="limit", recorders=[memory], strict=True)
    for _ in range(5):
        model.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        for optimizer in optimizers:
            optimizer.step()
    for memory in memories:
        assert [reading.step for reading in memory.readings] == [*range(5)]
        assert memory.readings[0].scale * memory.readings[0].r == pytest.approx(0.3)


UNKNOWN = {
    "the first is not guarded": ({}, None),
    "the first is not looked at in this step": ({"cadence": "every"}, {"cadence": 2}),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_where_it_is_not_known_where_the_other_was(why, batch, attached):
    ours, others = UNKNOWN[why]
    model, memory = Net(), Memory()
    first, second = optimizers_of(model)
    if others is not None:
        attached(model, first, **others)
    attached(model, second, recorders=[memory], **ours)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(4):
            model.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            first.step()
            second.step()
    assert len(said) == 1 and "Another optimizer moved the model" in str(said[0].message)
    missed = [event.step for event in memory.events if event.kind == "unmeasured"]
    assert missed == ([0, 1, 2, 3] if others is None else [1, 3])


def test_a_guard_that_is_gone_leaves_nothing_for_others(batch, attached):
    model = Net()
    first, second = optimizers_of(model)
    attached(model, first).detach()
    with attached(model, second, action="observe", strict=True) as guard:
        for _ in range(2):
            model.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            second.step()
            first.step()
    assert guard.last.step == 1
