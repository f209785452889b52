"""Which estimator a model gets, and that its r is right: against float64 central differences of the true forward."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import stepguard
from stepguard.records import Memory


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.bag((x.abs() * 4).long() % 9).tanh())


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Head(nn.Module):
    """A hidden layer, something peculiar, a head."""

    def __init__(self, middle):
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(12, 8), middle, nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.middle(self.body(x)))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(checkpoint(self.body, x.requires_grad_(), use_reentrant=True))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(3, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.cells(x.unflatten(1, (4, 3)))[0][:, -1])


def weight_norm():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 8)), nn.Tanh(), nn.Linear(8, 5))


CASES = {
    "mlp": ("forward", lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5))),
    "gru": ("forward", lambda: Recurrent(nn.GRU)),
    "lstm": ("forward", lambda: Recurrent(nn.LSTM)),
    "weight norm": (None, weight_norm),
    "embedding bag": ("difference", Bag),
    "custom function without jvp": ("difference", lambda: Head(Call(Square.apply))),
    "reentrant checkpoint": ("difference", Reentrant),
    "a detached path that moves": ("difference", lambda: Head(Call(lambda h: h.tanh() + 2 * h.detach()))),
    "item": ("difference", lambda: Head(Call(lambda h: h * (5 * h[0, 0].item())))),
}


def true_r(model, old, new, x):
    twin = copy.deepcopy(model).double()
    size, logits = 1e-5, []
    for sign in (1, -1):
        for name, p in twin.named_parameters():
            p.data = old[name].double() + sign * size * (new[name].double() - old[name].double())
        logits.append(twin(x.double()).detach())
    slopes = (logits[0] - logits[1]) / (2 * size)
    return float((slopes.amax(-1) - slopes.amin(-1)).max() / math.pi)


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lr", [1e-3, 1.0, 100.0])
def test_r_is_right_whatever_the_model_is_made_of(case, lr, batch):
    estimator, build = CASES[case]
    x, y = batch
    model, memory = build(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with stepguard.attach(model, optimizer, action="observe", strict=True, recorders=[memory]) as guard:
        old = parameters(model)
        F.cross_entropy(model(x.clone()), y).backward()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            optimizer.step()
    reading = guard.last
    assert estimator in (None, reading.estimator)
    exact = reading.estimator == "forward"
    assert reading.r == pytest.approx(true_r(model, old, parameters(model), x), rel=1e-4 if exact else 0.05)
    assert [e.kind for e in memory.events if e.kind == "fallback"] == [] if exact else ["fallback"]
    assert len(said) == (0 if exact else 1)
    if not exact:
        assert "by a finite difference from step 0 on: forward mode" in str(said[0].message)


def test_what_only_pretends_to_be_smooth_is_refused(batch):
    straight_through = Call(lambda h: h + (h.round() - h).detach())
    model = Head(straight_through)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard, pytest.warns(UserWarning, match="move in jumps.*forward="):
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
            assert guard.last is None


@pytest.mark.parametrize("case", ["embedding bag", "a detached path that moves"])
def test_a_clamp_by_differences_holds_the_target(case, batch):
    x, y = batch
    model = CASES[case][1]()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with stepguard.attach(model, optimizer) as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            old = parameters(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if guard.last.r > 1:
                assert true_r(model, old, parameters(model), x) == pytest.approx(1.0, rel=0.05)
    assert guard.last.estimator == "difference"


class Bandit(nn.Module):
    """Its logits are its parameter's own memory."""

    def __init__(self, view):
        super().__init__()
        self.z, self.view = nn.Parameter(torch.linspace(-1, 1, 10).repeat(64, 1)), view

    def forward(self, x):
        return self.z[: len(x)] if self.view else self.z


@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize("called", [True, False])
def test_logits_that_lie_in_the_memory_of_a_parameter(view, called, batch):
    model, y = Bandit(view), torch.arange(64) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=30.0)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        guard._probe.estimator.kind = "difference"
        old = parameters(model)
        F.cross_entropy(model(torch.ones(64, 1)) if called else model.z[:64], y).backward()
        optimizer.step()
    a = model.z.detach() - old["z"]
    assert guard.last.estimator == "difference"
    assert guard.last.r == pytest.approx(float((a.amax(-1) - a.amin(-1)).max() / math.pi), rel=0.05)


def test_a_difference_leaves_the_kept_parameters_alone_in_a_model_of_two_precisions(batch):
    model = nn.Sequential(nn.Linear(12, 8), Call(lambda h: h.tanh().to(model[2].weight.dtype)), nn.Linear(8, 5))
    model[2].bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    with stepguard.attach(model, optimizer, strict=True, target=1e-6) as guard:
        guard._probe.estimator.kind = "difference"
        old = parameters(model)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        assert guard.last.estimator == "difference" and guard.last.breach
        assert all(torch.equal(kept, old[n]) for kept, n in zip(guard._change._movement.old, old, strict=True))
    assert torch.allclose(model[0].weight, old["0.weight"], atol=1e-4)


class ZeroHead(nn.Module):
    """Its head starts from zeros, so at first nothing moves but the head, which autograd is right about."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        h = self.body(x)
        return self.head(h.tanh() + 3 * h.detach())


def test_what_cannot_be_seen_at_first_is_looked_at_again(batch):
    x, y = batch
    model = ZeroHead()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    with stepguard.attach(model, optimizer, action="observe") as guard, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(12):
            old = parameters(model)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 0:
                assert guard.last.estimator == "forward"
        assert guard.last.estimator == "difference"
        assert guard.last.r == pytest.approx(true_r(model, old, parameters(model), x), rel=0.05)


def test_classes_masked_out_with_minus_infinity(batch):
    class Masked(Bag):
        def forward(self, x):
            return super().forward(x).masked_fill(torch.tensor([False, False, True, False, False]), -math.inf)

    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe") as guard, pytest.warns(UserWarning, match="difference"):
        old = parameters(model)
        F.cross_entropy(model(batch[0]), torch.tensor([0, 1, 3, 4, 0, 1])).backward()
        optimizer.step()
    unmasked = Bag()
    unmasked.load_state_dict(model.state_dict())
    twin_old, twin_new = old, parameters(model)
    alive = [0, 1, 3, 4]
    unmasked.head.weight = nn.Parameter(unmasked.head.weight[alive])
    unmasked.head.bias = nn.Parameter(unmasked.head.bias[alive])
    for state in (twin_old, twin_new):
        state["head.weight"], state["head.bias"] = state["head.weight"][alive], state["head.bias"][alive]
    # The masked class itself does not move, which counts as slope 0 beside the others.
    assert guard.last.r >= 0.95 * true_r(unmasked, twin_old, twin_new, batch[0])
    assert math.isfinite(guard.last.r)
