"""The monitor on a plain loop: what it reads, that it changes nothing, what it does when asked to."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import stepguard
from stepguard.geometry.collapse import softmax_collapse
from stepguard.records import COLLAPSE_METRICS, Memory

X = torch.randn(32, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 5, (32,), generator=torch.Generator().manual_seed(2))


class Scaled(nn.Module):
    """Logits that grow by themselves, as fast as the test wants, and learn nothing."""

    def __init__(self, per_step):
        super().__init__()
        self.scale, self.per_step = nn.Parameter(torch.ones(3)), per_step
        self.register_buffer("time", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.time += self.per_step
        z = F.one_hot(torch.arange(len(x)) % 5, 5) * self.time
        return z + 1e-9 * self.scale.sum()


def train(model, steps, optimizer=None, loss=F.cross_entropy, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    memory = Memory()
    with stepguard.monitor_collapse(model, optimizer, recorders=[memory], **settings) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(X), Y).backward()
            optimizer.step()
    return monitor, memory


def events(memory):
    return [(e.step, e.kind) for e in memory.events]


def test_a_reading_is_that_of_the_logits_gradients_and_weights_of_its_step():
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    _, memory = train(model, 1, cadence=1, per_layer=True)
    z = twin(X)
    F.cross_entropy(z, Y).backward()
    near, (reading,) = softmax_collapse(z, Y), memory.collapses
    w = nn.utils.parameters_to_vector(twin.parameters()).detach().double()
    g = torch.cat([p.grad.flatten() for p in twin.parameters()]).double()
    assert (reading.step, reading.samples, reading.dtype, reading.classes) == (0, 32, "float32", 5)
    assert reading.collapse == reading.zero_terms == reading.zero_gradients == 0
    assert reading.headroom_min == pytest.approx(near.headroom_N.min().item(), abs=0.01)
    assert reading.headroom_median == pytest.approx(near.headroom_N.sort().values[15].item(), abs=0.01)
    assert reading.nlm_alignment == pytest.approx(-(g @ w / g.norm() / w.norm()).item(), rel=1e-5)
    assert reading.weight_norm == pytest.approx(w.norm().item(), rel=1e-5)
    assert reading.logit_norm == pytest.approx(z.norm(dim=-1).mean().item(), rel=1e-5)
    assert list(reading.layers) == [name for name, _ in twin.named_parameters()]
    assert reading.trend is None and reading.forecast is None and not reading.collapsed


@pytest.mark.filterwarnings("ignore:stepguard. step")
def test_a_collapse_is_forecast_before_it_comes_and_told_when_it_is_there():
    _, memory = train(Scaled(0.05), 420, cadence=4, horizon=100)
    told = dict((kind, step) for step, kind in events(memory))
    onset = next(r.step for r in memory.collapses if r.collapse > 0)
    assert [kind for _, kind in events(memory)] == ["warning", "onset"]
    assert told["onset"] == onset and onset - told["warning"] > 70
    forecast = next(r for r in memory.collapses if r.step == told["warning"]).forecast
    assert forecast == pytest.approx(onset, abs=8)


def test_the_warning_is_a_warning():
    with pytest.warns(UserWarning, match="softmax collapse is near: one sample in a hundred"):
        train(Scaled(2.0), 12, cadence=1)


@pytest.mark.filterwarnings("ignore:stepguard. step")
def test_every_metric_reaches_tensorboard(tmp_path):
    train(Scaled(2.0), 12, cadence=1, log_dir=tmp_path)
    log = EventAccumulator(str(tmp_path))
    log.Reload()
    tags = log.Tags()
    assert {m.key() for m in COLLAPSE_METRICS} <= set(tags["scalars"])
    assert "stepguard/events/text_summary" in tags["tensors"]


def train_and_tell(watched, model, make, loss, dtype=torch.float32):
    """A run with all that it leaves behind: with dropout, BatchNorm and draws from every generator."""
    torch.manual_seed(0)
    random.seed(0)
    model = model()
    optimizer = make(model.parameters())
    monitor = stepguard.monitor_collapse(model, optimizer, cadence=2, per_layer=True) if watched else None
    trail = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss(model(X), Y)
        value.backward()
        trail += [value.detach().clone(), *(p.grad.clone() for p in model.parameters())]
        optimizer.step()
        trail += [t.clone() for t in model.state_dict().values()]
    if monitor:
        assert monitor.last.step == 4
        monitor.detach()
    trail += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return trail, (
        torch.rand(3).tolist(),
        random.random(),
        model.training,
        hooks,
        len(optimizer._optimizer_step_pre_hooks),
    )


def noisy():
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda z, y: F.nll_loss(F.log_softmax(z, -1), y)], ids=["ce", "nll"])
def test_watching_changes_no_bit(loss, dtype):
    def make(parameters):
        return torch.optim.AdamW(parameters, lr=1e-2)

    (trail, rest), (twin, other) = (train_and_tell(w, noisy, make, loss, dtype) for w in (True, False))
    assert rest == other
    assert len(trail) == len(twin) and all(torch.equal(a, b) for a, b in zip(trail, twin, strict=True))
    assert not _get_current_function_mode_stack()


def test_beside_a_guard_both_see_what_each_sees_alone():
    def run(guarded, watched):
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        memory = Memory()
        on = [stepguard.attach(model, optimizer, recorders=[memory])] if guarded else []
        on += [stepguard.monitor_collapse(model, optimizer, cadence=2, recorders=[memory])] if watched else []
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
        for each in on:
            each.detach()
        assert not [e for e in memory.events if e.kind == "unmeasured"]
        known = (
            [r._replace(cost_share=None) for r in memory.collapses],
            [r._replace(cost_share=None) for r in memory.readings],
        )
        return known, list(model.parameters())

    (both, parameters), (guard, _), (monitor, _) = run(True, True), run(True, False), run(False, True)
    assert both == (monitor[0], guard[1])
    assert all(torch.equal(p, q) for p, q in zip(parameters, run(False, False)[1], strict=True))


@pytest.mark.filterwarnings("ignore:stepguard. step")
def test_stop_gives_a_reason_and_goes_on_until_it_is_heeded():
    monitor, memory = train(Scaled(2.0), 12, cadence=1, on_warning="stop")
    assert "softmax collapse is near" in monitor.stop_reason
    assert [kind for _, kind in events(memory)] == ["warning", "stop", "onset"]


@pytest.mark.filterwarnings("ignore:stepguard. step")
def test_the_cure_is_switched_on_by_a_warning_and_off_by_headroom():
    class Wave(Scaled):
        def forward(self, x):
            z = super().forward(x)
            return z if self.time < 20 else z - z.detach() * 0.9

    model = Wave(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.scale.data = torch.tensor([1.0, 2.0, 2.0])
    memory, along = Memory(), []
    monitor = stepguard.monitor_collapse(model, optimizer, cadence=1, on_warning="perp_grad", recorders=[memory])
    for _ in range(30):
        optimizer.zero_grad()
        (F.cross_entropy(model(X), Y) + model.scale.square().sum()).backward()
        optimizer.step()
        along.append(abs(torch.dot(model.scale.grad, model.scale.detach() + 0.1 * model.scale.grad)).item() < 1e-4)
    kinds = [kind for _, kind in events(memory)]
    assert kinds == ["warning", "cure_on", "onset", "recovery", "cure_off"]
    on, off = (next(e.step for e in memory.events if e.kind == k) for k in ("cure_on", "cure_off"))
    # what was asked for has no gradient but along the weights: nothing of it is left
    assert along == [on <= step < off for step in range(30)]
    assert not monitor.curing and [r.curing for r in memory.collapses][on + 1 : off + 1] == [True] * (off - on)
    monitor.detach()


@pytest.mark.filterwarnings("ignore:stepguard. step")
def test_an_interrupted_run_goes_on_as_if_it_had_not_been():
    def run(parts):
        torch.manual_seed(0)
        model = Scaled(0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        memory, state = Memory(), None
        for steps in parts:
            monitor = stepguard.monitor_collapse(
                model, optimizer, cadence=3, on_warning="perp_grad", recorders=[memory]
            )
            if state:
                monitor.load_state_dict(state)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(model(X), Y).backward()
                optimizer.step()
            state = copy.deepcopy(monitor.state_dict())
            monitor.detach()
        return [r._replace(cost_share=None) for r in memory.collapses], [e[:3] for e in memory.events]

    whole = run([50])
    assert len(whole[0]) == 17 and [kind for _, kind, _ in whole[1]] == ["warning", "cure_on", "onset"]
    for parts in ([20, 30], [1, 33, 16], [36, 14]):
        assert run(parts) == whole


def test_no_softmax_is_said_once_and_training_goes_on():
    model = mlp()
    with pytest.warns(UserWarning, match="No softmax or sigmoid cross-entropy was seen") as warned:
        _, memory = train(model, 4, cadence=1, loss=lambda z, y: z.square().mean())
    assert len(warned) == 1
    assert [kind for _, kind in events(memory)] == ["unmeasured"] * 4
    with pytest.raises(ValueError, match="No softmax"):
        train(mlp(), 1, cadence=1, loss=lambda z, y: z.square().mean(), strict=True)


def test_stablemax_is_said_to_have_nothing_to_watch():
    monitor, memory = train(mlp(), 4, cadence=1, loss=stepguard.stablemax_cross_entropy)
    assert [e.kind for e in memory.events] == ["found"]
    assert "StableMax, which does not collapse" in memory.events[0].message
    assert monitor.last is None


def test_an_error_of_ours_ends_no_run(monkeypatch):
    def broken(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("stepguard.probe.loss_watch.look_at", broken)
    with pytest.warns(
        UserWarning, match="step 0 was not looked at for softmax collapse. RuntimeError: broken on purpose"
    ):
        _, memory = train(mlp(), 3, cadence=1)
    assert [kind for _, kind in events(memory)] == ["unmeasured"] * 3


def test_steps_between_are_not_looked_at():
    monitor, memory = train(mlp(), 20, cadence=7)
    assert [r.step for r in memory.collapses] == [0, 7, 14]


def test_auto_reads_now_and_then():
    _, memory = train(mlp(), 400)
    steps = [r.step for r in memory.collapses]
    assert steps[:2] == [0, 32] and 2 <= len(steps) < 40
    assert memory.collapses[-1].every >= 32
    assert memory.collapses[-1].cost_share is not None


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        stepguard.monitor_collapse(3, None)
    with pytest.raises(ValueError, match="not parameters of this"):
        stepguard.monitor_collapse(mlp(), torch.optim.SGD(mlp().parameters()))
    with pytest.raises(ValueError, match="on_warning must be"):
        model = mlp()
        stepguard.monitor_collapse(model, torch.optim.SGD(model.parameters()), on_warning="clip")
