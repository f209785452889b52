import math
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from reference import mlp, parameters_of
from torch import nn

import stepguard
from stepguard.records import Memory


def run(model, optimizer, batches, loss=F.cross_entropy):
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def finite(model):
    return all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
@pytest.mark.parametrize("action", ["clamp", "drive"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_batch_is_withheld_and_training_goes_on(make, action, poison, batch):
    x, y = batch
    bad = x.clone()
    bad[0, 0] = poison
    model, memory = mlp(), Memory()
    optimizer = make(model.parameters())
    with stepguard.attach(model, optimizer, action=action, recorders=[memory]) as guard:
        run(model, optimizer, [(x, y)])
        before = parameters_of(model)
        run(model, optimizer, [(bad, y)])
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        assert math.isnan(guard.last.r) and guard.last.scale == 0 and guard.last.lr_applied == 0
        assert any(p.grad.isnan().any() for p in model.parameters())  # the user's gradients are given back
        assert [e.kind for e in memory.events if e.step == 1] == ["withheld"]
        run(model, optimizer, [(x, y)])
        assert finite(model) and math.isfinite(guard.last.r) and guard.last.scale > 0
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert state and all(v.isfinite().all() for v in state)


def test_without_a_guard_the_poison_stays(batch):
    x, y = batch
    model = mlp()
    run(model, torch.optim.Adam(model.parameters()), [(x * math.nan, y), (x, y)])
    assert not finite(model)


def test_an_infinite_update_is_withheld(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=math.inf)
    with stepguard.attach(model, optimizer, recorders=[memory]):
        before = parameters_of(model)
        run(model, optimizer, [batch])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert [e.kind for e in memory.events] == ["withheld"]


def test_logits_that_are_not_finite_are_unsafe(batch):
    model = nn.Sequential(mlp(), nn.Linear(5, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bad_head = lambda m: m(batch[0]) + torch.tensor([math.inf, 0, 0, 0, 0]) * m[1].weight.sum()  # noqa: E731
    with stepguard.attach(model, optimizer, forward=bad_head) as guard:
        before = parameters_of(model)
        run(model, optimizer, [batch])
    assert not math.isfinite(guard.last.r) and guard.last.scale == 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_observe_reports_the_poison_and_touches_nothing(batch):
    x, y = batch
    model, twin, memory = mlp(), mlp(), Memory()
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters())
    with stepguard.attach(model, optimizer, action="observe", recorders=[memory]):
        run(model, optimizer, [(x * math.nan, y)])
    run(twin, torch.optim.Adam(twin.parameters()), [(x * math.nan, y)])
    assert not finite(model) and not finite(twin)
    assert [e.kind for e in memory.events] == ["breach"]


CALLS = []


class Stateful(nn.Module):
    """Its forward depends on something outside of it."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        CALLS.append(None)
        return self.inner(x) * len(CALLS)


class Scores(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        return {"scores": self.inner(x)}


CANNOT = {
    "regression": (mlp, lambda z, y: F.mse_loss(z, F.one_hot(y, 5).float()), "No softmax.*pass logits=.*or forward="),
    "another forward the second time": (Stateful, F.cross_entropy, "gave other logits than training saw.*forward="),
    "labels missing": (
        Scores,
        lambda out, y: next(iter(LAST_MODEL[0].parameters())).square().sum() + 0 * out["scores"].detach().sum(),
        "No softmax.*pass logits=",
    ),
}
LAST_MODEL = []


@pytest.mark.parametrize("case", CANNOT)
@pytest.mark.parametrize("action", ["observe", "clamp"])
def test_what_cannot_be_measured_is_said_once_and_changes_nothing(case, action, batch):
    build, loss, message = CANNOT[case]
    torch.manual_seed(1)
    model, memory = build(), Memory()
    torch.manual_seed(1)
    twin = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    LAST_MODEL[:] = [model]
    CALLS.clear()
    with stepguard.attach(model, optimizer, action=action, recorders=[memory]) as guard:
        with pytest.warns(UserWarning, match=message) as said:
            run(model, optimizer, [batch] * 3, loss)
    assert len(said) == 1 and guard.last is None
    assert [(e.step, e.kind) for e in memory.events] == [(0, "unmeasured"), (1, "unmeasured"), (2, "unmeasured")]
    LAST_MODEL[:] = [twin]
    CALLS.clear()
    run(twin, torch.optim.SGD(twin.parameters(), lr=0.1), [batch] * 3, loss)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("case", CANNOT)
def test_strict_raises_instead(case, batch):
    build, loss, message = CANNOT[case]
    model = build()
    LAST_MODEL[:] = [model]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True), pytest.raises(Exception, match=message):
        run(model, optimizer, [batch], loss)


def test_a_model_that_is_never_called(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer), pytest.warns(UserWarning, match="not called under grad.*forward="):
        run(lambda x: model[0].weight, optimizer, [batch], lambda w, y: w.square().sum())


def test_inputs_that_other_parameters_made(batch):
    body, head = nn.Linear(12, 12), mlp()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    with (
        stepguard.attach(head, optimizer),
        pytest.warns(UserWarning, match="other trained parameters than the attached"),
    ):
        run(lambda x: head(body(x)), optimizer, [batch])


def test_an_error_in_the_replay_ends_nothing(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def broken(m):
        raise torch.OutOfMemoryError("no memory left")

    with stepguard.attach(model, optimizer, forward=broken), pytest.warns(UserWarning, match="no memory left"):
        before = torch.get_rng_state()
        run(model, optimizer, [batch] * 2)
    assert torch.equal(before, torch.get_rng_state()) and model.training


def test_a_recorder_that_fails_is_said_once(batch):
    class Full(Memory):
        def reading(self, reading):
            raise OSError("disk full")

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    with stepguard.attach(model, optimizer, recorders=[Full(), memory := Memory()]):
        with pytest.warns(UserWarning, match="Full could not write .disk full.") as said:
            run(model, optimizer, [batch] * 2)
    assert len(said) == 1 and len(memory.readings) == 2 and memory.readings[0].scale < 1


def test_measuring_again_after_a_failure(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard:
        with pytest.warns(UserWarning, match="No softmax"):
            run(model, optimizer, [batch], lambda z, y: z.square().mean())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(model, optimizer, [batch])
        assert guard.last.step == 1


def test_an_optimizer_of_another_model():
    with pytest.raises(ValueError, match="4 of the optimizer's 4 tensors are not parameters of this Sequential"):
        stepguard.attach(mlp(), torch.optim.SGD(mlp().parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [(mlp, lambda m: "adam", "torch.optim.Optimizer, got str"), (dict, lambda m: None, "torch.nn.Module, got dict")],
)
def test_things_that_are_neither_model_nor_optimizer(model, optimizer, message):
    model = model()
    with pytest.raises(TypeError, match=message):
        stepguard.attach(model, optimizer(model))


@pytest.mark.parametrize("setting", [{"target": 0}, {"action": "stop"}, {"cadence": 0}, {"quantile": 2}])
def test_bad_settings_leave_no_hook(setting):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError):
        stepguard.attach(model, optimizer, **setting)
    assert not model._forward_hooks and not optimizer._optimizer_step_pre_hooks


def test_no_batch_outlives_a_step_that_failed():
    model, y = Stateful(), torch.zeros(4, dtype=torch.long)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer), pytest.warns(UserWarning, match="gave other logits"):
        x = torch.randn(4, 12)
        alive = weakref.ref(x)
        run(model, optimizer, [(x, y)])
        del x
        assert alive() is None


@pytest.mark.parametrize("broken", ["random_state", "sample"])
def test_an_error_while_watching_stays_out_of_the_forward(broken, batch, monkeypatch):
    def fail(*args):
        raise OSError("no such device")

    monkeypatch.setattr(f"stepguard.probe.watch.{broken}", fail)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer), pytest.warns(UserWarning, match="no such device"):
        run(model, optimizer, [batch])


def test_ranks_that_cannot_talk_do_not_end_the_run(batch, monkeypatch):
    def fail(*args):
        raise RuntimeError("connection reset")

    monkeypatch.setattr("stepguard.guard.ranks.Ranks.agree", fail)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard, pytest.warns(UserWarning, match="connection reset"):
        run(model, optimizer, [batch])
    assert guard.last is None and guard.step == 1


@pytest.mark.filterwarnings("error")
def test_warnings_made_errors_do_not_end_the_run(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard:
        run(model, optimizer, [batch], lambda z, y: z.square().mean())
    assert guard.step == 1


def test_a_step_that_raised_gives_the_gradients_back(batch):
    x, y = batch
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer):
        F.cross_entropy(model(x * math.nan), y).backward()
        foreach, optimizer.param_groups[0]["foreach"] = optimizer.param_groups[0]["foreach"], "broken"
        optimizer.param_groups[0].pop("momentum")
        with pytest.raises(KeyError):
            optimizer.step()
        optimizer.param_groups[0].update(momentum=0, foreach=foreach)
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters()) and finite(model)


def test_the_step_after_one_that_raised_is_measured(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        momentum = optimizer.param_groups[0].pop("momentum")
        with pytest.raises(KeyError):
            optimizer.step()
        optimizer.param_groups[0]["momentum"] = momentum
        run(model, optimizer, [batch])
        assert guard.last.r > 1 > guard.last.scale


class InPlace(nn.Module):
    """Centres the batch that it is given, in place."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return self.net(x.sub_(x.mean(0)))


def test_a_batch_that_the_model_changes_is_measured_from_the_first_step(batch):
    model, memory = InPlace(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True, recorders=[memory]):
        for _ in range(3):
            x, expected = batch[0].clone(), batch[0].clone()
            run(model, optimizer, [(x, batch[1])])
            assert torch.equal(x, expected.sub_(expected.mean(0)))
    assert len(memory.readings) == 3


def test_a_poisoned_batch_does_not_stay_in_the_running_averages(batch):
    x, y = batch
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with stepguard.attach(model, optimizer):
        run(model, optimizer, [batch])
        before = {n: b.clone() for n, b in model.named_buffers()}
        run(model, optimizer, [(x * math.nan, y)])
        torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
        run(model, optimizer, [batch])
    assert all(not torch.equal(b, before[n]) and b.isfinite().all() for n, b in model.named_buffers())


def test_running_averages_of_a_checkpoint_loaded_after_attach_are_kept(batch):
    x, y = batch
    build = lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))  # noqa: E731
    trained = build()
    run(trained, torch.optim.SGD(trained.parameters(), lr=0.1), [batch] * 3)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer):
        model.load_state_dict(trained.state_dict())
        run(model, optimizer, [(x * math.nan, y)])
    torch.testing.assert_close(model.state_dict(), trained.state_dict(), rtol=0, atol=0)


def test_what_nobody_thought_of_does_not_end_a_calm_step(monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("nobody thought of it")

    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with stepguard.attach(model, optimizer, recorders=[memory]) as guard:
        x, y = torch.randn(6, 12), torch.randint(0, 5, (6,))
        run(model, optimizer, [(x, y)] * 14)
        assert len(memory.readings) < guard.step == 14  # it is calm by now
        monkeypatch.setattr("stepguard.guard.calm.Calm.scale", fail)
        with pytest.warns(UserWarning, match="nobody thought of it"):
            run(model, optimizer, [(x, y)] * 3)
        assert guard.step == 17
