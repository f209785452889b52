"""What watching and replaying must not do: keep batches, leave modes behind, change what a user's forward remembers."""

import collections
import random
import threading
import weakref

import numpy
import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

import stepguard
from stepguard.probe import watch
from stepguard.records import Memory


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.1, **settings)


def train(model, optimizer, x, y, loss=F.cross_entropy):
    optimizer.zero_grad()
    kept = loss(model(x), y)
    kept.backward()
    optimizer.step()
    return kept


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_that_is_kept_keeps_no_batch(reduction, batch):
    model = mlp()
    optimizer, losses, alive = sgd(model), [], []
    with stepguard.attach(model, optimizer, strict=True):
        for _ in range(4):
            x = torch.randn(6, 12)
            alive.append(weakref.ref(x))
            losses.append(
                train(model, optimizer, x, batch[1], lambda z, y: F.cross_entropy(z, y, reduction=reduction).mean())
            )
            del x
        assert [ref() for ref in alive] == [None] * 4


def test_batches_of_a_step_that_never_comes_do_not_pile_up(batch):
    model = mlp()
    optimizer, other, alive = sgd(model), sgd(model), []
    with stepguard.attach(model, optimizer):
        for _ in range(5):
            x = torch.randn(6, 12)
            alive.append(weakref.ref(x))
            train(model, other, x, batch[1])
            del x
        assert sum(ref() is not None for ref in alive) <= 1


class Mode(TorchFunctionMode):
    seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        Mode.seen += 1
        return function(*args, **(kwargs or {}))


def test_no_mode_is_left_and_none_of_the_users_is_taken(batch):
    model = mlp()
    optimizer = sgd(model)
    guard = stepguard.attach(model, optimizer, strict=True)
    for _ in range(3):
        with Mode() as mode, torch.device("cpu"):
            loss = F.cross_entropy(model(batch[0]), batch[1])
        assert mode not in _get_current_function_mode_stack()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert guard.last.step == 2
    guard.detach()
    assert _get_current_function_mode_stack() == []


def test_what_a_user_counts_is_not_counted_twice(batch):
    calls = []
    for guarded in (False, True):
        model = mlp()
        optimizer = sgd(model)
        guard = stepguard.attach(model, optimizer, action="observe") if guarded else None
        for _ in range(3):
            train(model, optimizer, *batch)
        Mode.seen = 0
        with Mode():
            loss = F.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
        calls.append(Mode.seen)
        if guard:
            guard.detach()
    assert calls[0] == calls[1]


def test_training_in_another_thread(batch):
    model = mlp()
    optimizer = sgd(model)
    guard = stepguard.attach(model, optimizer, strict=True)
    left = []

    def work():
        for _ in range(3):
            train(model, optimizer, *batch)
        left.extend(_get_current_function_mode_stack())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert guard.last.step == 2 and left == []
    guard.detach()
    assert _get_current_function_mode_stack() == []


TABLE = collections.OrderedDict(gelu=F.gelu)


class Table(dict):
    """A dict that cannot be filled by update, as some output classes."""

    def update(self, *args, **kwargs):
        raise TypeError("no updates")


class Meter:
    def __init__(self):
        self.n = 0


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.table, self.meter = mlp(), Table(a=1), Meter()
        self.seen = collections.defaultdict(list)
        self.rng, self.python = numpy.random.default_rng(0), random.Random(0)

    def forward(self, x):
        self.meter.n += 1
        self.seen["sizes"].append(len(x))
        self.table["last"] = len(x)
        return self.net(TABLE["gelu"](x)) * (1 + self.rng.random() + self.python.random())


def test_what_a_forward_remembers_is_as_without_a_guard(batch):
    models = [Remembers(), Remembers()]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [sgd(m) for m in models]
    with stepguard.attach(models[1], optimizers[1], action="observe", strict=True):
        for _ in range(3):
            for model, optimizer in zip(models, optimizers, strict=True):
                train(model, optimizer, *batch)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)
    assert models[1].meter.n == 3 and models[1].seen == {"sizes": [6, 6, 6]} and dict(TABLE) == {"gelu": F.gelu}
    assert models[1].table == {"a": 1, "last": 6} and models[1].rng.random() == models[0].rng.random()


class SAM(torch.optim.SGD):
    """Moves to where the loss is larger, runs the closure there, and steps from where it was."""

    @torch.no_grad()
    def step(self, closure):
        moved = [p.grad.clone() for p in self.param_groups[0]["params"]]
        for p, e in zip(self.param_groups[0]["params"], moved, strict=True):
            p.add_(e)
        with torch.enable_grad():
            closure()
        for p, e in zip(self.param_groups[0]["params"], moved, strict=True):
            p.sub_(e)
        return super().step()


def test_an_optimizer_that_moves_before_its_closure_is_refused(batch):
    model, memory = mlp(), Memory()
    optimizer = SAM(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    with stepguard.attach(model, optimizer, recorders=[memory]), pytest.warns(UserWarning, match="before it ran the"):
        closure()
        optimizer.step(closure)
    assert not memory.readings


def test_a_batch_changed_in_place_is_refused_or_seen_in_time(batch):
    model, memory = mlp(), Memory()
    optimizer = sgd(model)
    with stepguard.attach(model, optimizer, action="observe", recorders=[memory]):
        train(model, optimizer, *batch)  # from here on the model is known not to change what it is given
        x = torch.randn(2000, 12)
        row = x[1999]
        y = torch.zeros(2000, dtype=torch.long)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        row.mul_(100)
        with pytest.warns(UserWarning, match="changed in place before the optimizer's step"):
            optimizer.step()
        optimizer.zero_grad()
        x = torch.randn(6, 12)
        F.cross_entropy(model(x), batch[1]).backward()
        x.mul_(100)  # by its own name: a copy is kept in time
        optimizer.step()
    assert [r.step for r in memory.readings] == [0, 2] and memory.readings[1].r < 1


def test_gradients_under_vmap_and_errors_of_ours_stay_out_of_backward(batch, monkeypatch):
    model = mlp()
    optimizer = sgd(model)
    with stepguard.attach(model, optimizer, action="observe") as guard:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
        torch.autograd.grad(losses, list(model.parameters()), torch.eye(6), is_grads_batched=True, retain_graph=True)
        losses.mean().backward()
        optimizer.step()
        assert guard.last.step == 0

        def fail(*args):
            raise OSError("no such thing")

        monkeypatch.setattr(watch.Passes, "reach", fail)
        with pytest.warns(UserWarning, match="no such thing|No softmax"):
            train(model, optimizer, *batch)


def test_batch_norm_in_the_mode_that_is_asked_for(batch):
    found = {}
    for mode in ("train", "eval"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
        model[1].running_var.fill_(100.0)
        optimizer = sgd(model)
        old = {n: p.detach().clone() for n, p in model.named_parameters()}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        with stepguard.attach(model, optimizer, action="observe", strict=True, batch_norm=mode) as guard:
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            after_forward = {n: b.clone() for n, b in model.named_buffers()}
            optimizer.step()
        assert all(torch.equal(b, after_forward[n]) for n, b in model.named_buffers())
        update = {n: p.detach() - old[n] for n, p in model.named_parameters()}
        model.train(mode == "train")
        slopes = stepguard.logit_slopes(
            lambda p, m=model, b=after_forward: torch.func.functional_call(
                m, p | {n: v.clone() for n, v in b.items()}, (batch[0],)
            ),
            old,
            update,
        )
        assert guard.last.r == pytest.approx(float(stepguard.step_ratio(slopes).max()), rel=1e-4)
        found[mode] = guard.last.r
        assert buffers
    assert found["train"] > 2 * found["eval"]


def test_lazy_modules_must_have_run():
    model = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="run it once on a batch before attaching"):
        stepguard.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_resumed_run_knows_the_numbers_that_are_always_the_same(batch):
    model = mlp()
    optimizer, scale = sgd(model), 12**-0.5

    def step():
        optimizer.zero_grad()
        z = model(batch[0])
        z.std().item()  # logged
        F.cross_entropy(z * scale, batch[1]).backward()
        optimizer.step()

    with stepguard.attach(model, optimizer) as guard:
        with pytest.warns(UserWarning, match="read off a tensor"):
            step()
        step()
        assert guard.last.step == 1
        saved = guard.state_dict()
    with stepguard.attach(model, optimizer, strict=True) as guard:
        guard.load_state_dict(saved)
        step()
        assert guard.last.step == 2
