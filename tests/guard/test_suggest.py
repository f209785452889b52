"""How large the learning rate may be: right, and without a trace."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import dense_r, mlp, parameters_of
from torch import nn
from torch.optim import lr_scheduler

import stepguard


def batches(count=4, size=16, same=False):
    draw = torch.Generator().manual_seed(3)
    found = [
        (torch.randn(size, 12, generator=draw), torch.randint(0, 5, (size,), generator=draw)) for _ in range(count)
    ]
    return found[:1] * count if same else found


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
    "groups": lambda p: torch.optim.Adam([{"params": (q := list(p))[:2], "lr": 1e-2}, {"params": q[2:], "lr": 1e-3}]),
    "lr as a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), capturable=False, foreach=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_at_the_largest_rate_the_step_is_at_the_target(name):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    found = stepguard.suggest_lr(model, optimizer, batches(), target=0.7)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    old = parameters_of(model)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):  # the rates keep their proportions
        group["lr"] = rate * found.largest / max(rates)
    for x, y in batches():
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(old[n])
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert dense_r(model, old, parameters_of(model), x) == pytest.approx(0.7, rel=1e-3)
    assert found.factor == pytest.approx(found.lr / max(rates)) and found.lr == pytest.approx(0.3 * found.settled)


def test_where_all_batches_are_the_same_the_first_step_decides():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = stepguard.suggest_lr(model, optimizer, batches(same=True))
    assert found.settled == found.largest
    assert stepguard.suggest_lr(model, optimizer, batches(1)).settled > 0


def test_gradients_that_all_point_one_way_do_not_decide():
    torch.manual_seed(0)
    model = nn.Linear(12, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    one_sided = [(x + 3.0, torch.zeros_like(y)) for x, y in batches()]
    found = stepguard.suggest_lr(model, optimizer, one_sided)
    assert found.settled > 2 * found.largest
    shorter = found._replace(largest=found.lr / 2)
    assert "are 2 times as long as is safe: warm up from" in shorter.advice
    assert "warm up" not in found._replace(largest=2 * found.lr).advice


class Awkward(nn.Module):
    """BatchNorm, dropout, a counter, noise of three kinds."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)
        self.drop, self.calls = nn.Dropout(0.3), 0

    def forward(self, x):
        self.calls += 1
        noise = random.random() + np.random.rand() + torch.rand(())
        return self.head(self.drop(self.norm(self.body(x)))) + 0.0 * noise


@pytest.mark.parametrize("trained", [False, True])
def test_it_leaves_no_trace(trained):
    model = Awkward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    if trained:
        F.cross_entropy(model(batches()[0][0]), batches()[0][1]).backward()
        optimizer.step()
        scheduler.step()

    def everything():
        own = {k: v for k, v in vars(optimizer).items() if k not in ("state", "param_groups")}
        return (
            [t.clone() for t in (*model.parameters(), *model.buffers())],
            [p.grad if p.grad is None else (p.grad, p.grad.clone()) for p in model.parameters()],
            copy.deepcopy(optimizer.state_dict()),
            str(own),
            str(scheduler.state_dict()),
            (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),
            (model.calls, model.training, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]),
        )

    before = everything()
    found = stepguard.suggest_lr(model, optimizer, batches())
    after = everything()
    assert 0 < found.lr < math.inf
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    for a, b in zip(before[1], after[1], strict=True):
        assert (a is b is None) or (a[0] is b[0] and torch.equal(a[1], b[1]))
    assert str(before[2]) == str(after[2]) and before[3:5] == after[3:5] and before[6] == after[6]
    assert torch.equal(before[5][0], after[5][0]) and before[5][1:] == after[5][1:]


def test_an_error_leaves_no_trace_either():
    model, seen = mlp(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    old = parameters_of(model)

    def loss(batch):
        seen.append(batch)
        if len(seen) == 3:
            raise RuntimeError("the third batch is broken")
        return F.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(RuntimeError, match="third batch"):
        stepguard.suggest_lr(model, optimizer, batches(), loss)
    assert all(torch.equal(p, old[n]) for n, p in model.named_parameters())
    assert not optimizer.state and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_rate_of_zero_is_not_taken_for_an_answer():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    usual = stepguard.suggest_lr(model, optimizer, batches())
    optimizer.param_groups[0]["lr"] = 0.0
    again = stepguard.suggest_lr(model, optimizer, batches())
    assert again.lr == pytest.approx(usual.lr, rel=1e-3) and optimizer.param_groups[0]["lr"] == 0.0


def test_what_cannot_be_answered_says_why():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="there are no batches"):
        stepguard.suggest_lr(model, optimizer, [])
    with pytest.raises(ValueError, match="pass loss=, a function from a batch to its loss: a dict is not"):
        stepguard.suggest_lr(model, optimizer, [{"x": 1}])
    with pytest.raises(ValueError, match="target must be a positive, finite number"):
        stepguard.suggest_lr(model, optimizer, batches(), target=0)
    with pytest.raises(ValueError, match="most must be a positive number of batches, got 0"):
        stepguard.suggest_lr(model, optimizer, batches(), most=0)
    with pytest.raises(ValueError, match="softmax"):
        stepguard.suggest_lr(model, optimizer, batches(), lambda batch: model(batch[0]).square().mean())
    with pytest.raises(ValueError, match="nothing to measure"):
        stepguard.suggest_lr(model, optimizer, [(x * math.inf, y) for x, y in batches()])
    with pytest.raises(ValueError, match="LBFGS needs a closure"):
        stepguard.suggest_lr(model, torch.optim.LBFGS(model.parameters()), batches())
    with stepguard.attach(model, optimizer), pytest.raises(ValueError, match="guarded already"):
        stepguard.suggest_lr(model, optimizer, batches())
