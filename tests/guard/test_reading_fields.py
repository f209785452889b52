"""What a reading says beside r: norms of gradients and weights, and how the rest of the batch is."""

import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from reference import dense_slopes, mlp, parameters_of
from torch import nn

import stepguard
from stepguard.records import Reading


def norm(tensors):
    return math.sqrt(sum(t.detach().double().square().sum().item() for t in tensors))


def prepared(model, optimizer, x, y, clip=None, scale=1.0):
    optimizer.zero_grad()
    (scale * F.cross_entropy(model(x), y)).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)


ACTIONS = ["observe", "clamp", "drive"]
CADENCES = {
    "auto": {},
    "every step": {"cadence": "every"},
    "an explicit forward": {"forward": lambda m: m(torch.eye(12))},
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("cadence", CADENCES)
def test_norms_are_those_of_what_the_optimizer_is_given_and_moves(action, cadence, batch):
    model = mlp()
    optimizer = torch.optim.Adam(model[3].parameters(), lr=0.1)  # the rest is frozen for it, and has gradients
    with stepguard.attach(model, optimizer, action=action, target=0.1, strict=True, **CADENCES[cadence]) as guard:
        for clip in (None, 0.05):
            prepared(model, optimizer, *batch, clip)
            gradients, weights = norm(p.grad for p in model[3].parameters()), norm(model[3].parameters())
            optimizer.step()
            assert guard.last.gradient_norm == pytest.approx(gradients, rel=1e-6)
            assert guard.last.weight_norm == pytest.approx(weights, rel=1e-6)
            assert guard.last.tau * guard.last.scale != pytest.approx(0)


def slopes_spread(model, old, x):
    new = parameters_of(model)
    a = dense_slopes(model, old, {n: new[n].double() - old[n].double() for n in old}, x)
    return (a.amax(-1) - a.amin(-1)) / math.pi


@pytest.mark.parametrize("estimator", ["forward", "secant"])
def test_the_median_is_that_of_all_samples(estimator, batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, action="observe", cadence="every", screen=estimator == "secant") as guard:
        for _ in range(6):
            old = parameters_of(model)
            prepared(model, optimizer, *batch)
            optimizer.step()
    r_N = slopes_spread(model, old, batch[0]).sort().values
    assert guard.last.estimator == estimator and guard.last.samples == len(r_N) == 6
    assert guard.last.r == pytest.approx(r_N[-1].item(), rel=0.05)
    assert guard.last.r_median == pytest.approx(r_N[2].item(), rel=0.05)


def test_an_outlier_stands_out_of_its_batch_and_a_bad_batch_does_not(batch):
    x, y = batch
    found = {}
    for name, factor in {"one": torch.tensor([30.0, 1, 1, 1, 1, 1]), "all": torch.full((6,), 30.0)}.items():
        model = nn.Linear(12, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
            prepared(model, optimizer, x * factor[:, None], y)
            optimizer.step()
        found[name] = guard.last.r / guard.last.r_median
    assert found["one"] > 10 and found["all"] < 5


def test_tokens_that_the_loss_counts_are_the_samples():
    model = nn.Linear(12, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(2, 7, 12), torch.randint(0, 5, (2, 7))
    y[0, :3] = -100
    with stepguard.attach(model, optimizer, strict=True) as guard:
        optimizer.zero_grad()
        F.cross_entropy(model(x).transpose(1, 2), y).backward()
        optimizer.step()
    assert guard.last.samples == 11


@pytest.mark.parametrize("action", ["observe", "clamp"])
def test_a_step_that_is_not_finite_says_what_was_not(action, batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, action=action) as guard:
        prepared(model, optimizer, *batch)
        weights = norm(model.parameters())
        model[0].weight.grad[0, 0] = math.inf
        optimizer.step()
    assert not guard.last.r < math.inf and guard.last.gradient_norm == math.inf
    assert guard.last.weight_norm == pytest.approx(weights) and guard.last.samples is guard.last.r_median is None


def test_norms_whose_squares_overflow_are_no_reason_to_withhold(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-25)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        prepared(model, optimizer, *batch, scale=1e25)
        optimizer.step()
    assert guard.last.gradient_norm == math.inf and guard.last.scale > 0 and guard.last.r < math.inf


def test_what_a_scaler_has_yet_to_unscale_is_unknown(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        scaler.scale(F.cross_entropy(model(batch[0]), batch[1])).backward()
        scaler.step(optimizer)
    assert guard.last.gradient_norm is None and guard.last.weight_norm > 0


@pytest.mark.parametrize("action", ["observe", "clamp"])
def test_a_prediction_knows_nothing_of_samples(action, batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with stepguard.attach(model, optimizer, action=action, strict=True) as guard:
        for step in range(40):
            prepared(model, optimizer, *batch, scale=1e6 if step == 39 else 1.0)
            weights = norm(model.parameters())
            optimizer.step()
    assert guard.last.estimator == "prediction" and guard.last.step == 39
    assert guard.last.samples is guard.last.r_median is guard.last.loss is None
    assert guard.last.weight_norm == pytest.approx(weights, rel=1e-6)
    assert guard.last.gradient_norm == pytest.approx(norm(p.grad for p in model.parameters()), rel=1e-6)


def test_a_state_from_before_these_were_there_can_be_loaded(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard:
        prepared(model, optimizer, *batch)
        optimizer.step()
        state = guard.state_dict()
        for name in ("gradient_norm", "weight_norm", "r_median", "samples"):
            del state["last"][name]
        guard.load_state_dict(state)
    assert isinstance(guard.last, Reading) and guard.last.samples is None


LOSSES = {
    "cross-entropy": lambda z, y: F.cross_entropy(z, y),
    "weighted and smoothed, of which it is the plain one": lambda z, y: F.cross_entropy(
        z, y, weight=torch.arange(1.0, 6.0), label_smoothing=0.1
    ),
    "log-softmax and nll": lambda z, y: F.nll_loss(F.log_softmax(z, -1), y),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("way", ["forward", "difference", "secant"])
def test_the_loss_is_that_of_the_samples_before_the_step(loss, way, batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch[0], batch[1].clone()
    y[0] = -100
    with stepguard.attach(model, optimizer, action="observe", cadence="every", screen=way == "secant") as guard:
        for step in range(6):
            if way == "difference" and step == 0:
                guard._probe.estimator.kind = "difference"
            with torch.no_grad():
                z = model(x)[1:].double()
                expected = F.cross_entropy(z, y[1:], reduction="none")
            optimizer.zero_grad()
            LOSSES[loss](model(x), y).backward()
            optimizer.step()
    assert guard.last.estimator == way and guard.last.samples == 5
    assert guard.last.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert guard.last.loss_max == pytest.approx(expected.max().item(), rel=1e-5)


def test_the_loss_of_tokens_is_that_of_those_that_count():
    model = nn.Linear(12, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(2, 7, 12), torch.randint(0, 5, (2, 7))
    y[0, :3] = -100
    with stepguard.attach(model, optimizer, strict=True) as guard:
        loss = F.cross_entropy(model(x).transpose(1, 2), y)
        loss.backward()
        optimizer.step()
    assert guard.last.loss == pytest.approx(loss.item(), rel=1e-6)


def test_a_wide_head_has_a_loss_without_a_copy_of_its_logits():
    model = nn.Linear(8, 20_000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        loss = F.cross_entropy(model(torch.randn(4, 8)), torch.tensor([0, 5, 9_000, 19_999]))
        loss.backward()
        optimizer.step()
    assert guard.last.loss == pytest.approx(loss.item(), rel=1e-5)


def test_a_loss_without_class_indices_is_unknown(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        F.cross_entropy(model(batch[0]), torch.full((6, 5), 0.2)).backward()
        optimizer.step()
    assert guard.last.r > 0 and guard.last.loss is guard.last.loss_max is None


@pytest.mark.parametrize("accumulated", [False, True])
def test_inputs_are_measured_whether_or_not_a_step_is_watched(accumulated, batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = batch
    with stepguard.attach(model, optimizer, strict=True) as guard:
        for step in range(40):
            given = x.clone()
            given[2] *= 1e4 if step == 39 else 1.0
            optimizer.zero_grad()
            parts = list(zip(given.split(3), y.split(3), strict=True)) if accumulated else [(given, y)]
            for some_x, some_y in parts:
                F.cross_entropy(model(some_x), some_y).backward()
            optimizer.step()
    norms = given.norm(dim=1).sort().values
    assert guard.last.step == 39 and guard.last.estimator == "prediction" and guard.last.inputs == 6
    assert guard.last.input_norm == pytest.approx(norms[2].item(), rel=1e-6)
    assert guard.last.input_norm_max == pytest.approx(norms[-1].item(), rel=1e-6)


def test_tokens_have_no_size_and_inputs_are_kept_by_nobody(batch):
    model = nn.Sequential(nn.Embedding(10, 12), nn.Linear(12, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        F.cross_entropy(model(torch.arange(6)), batch[1]).backward()
        optimizer.step()
        assert guard.last.inputs is guard.last.input_norm is None
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with stepguard.attach(model, optimizer, strict=True):
        for _ in range(35):
            x = batch[0].clone()
            optimizer.zero_grad()
            F.cross_entropy(model(x), batch[1]).backward()
            alive = weakref.ref(x)
            del x
            optimizer.step()
            assert alive() is None or _ < 5
        assert alive() is None


def test_the_step_before_is_told_also_where_it_was_not_measured(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    memory, lengths = stepguard.records.Memory(), []
    with stepguard.attach(model, optimizer, strict=True, recorders=[memory]):
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 1e-3 * (1 + step / 100) if step < 50 else 5.0
            prepared(model, optimizer, *batch)
            old = [p.detach().clone() for p in model.parameters()]
            optimizer.step()
            lengths.append(norm(new - before for new, before in zip(model.parameters(), old, strict=True)))
            if step == 50:
                break
    assert memory.readings[0].lr_before is memory.readings[0].tau_before is None
    last = memory.readings[-1]
    assert last.step == 50 and memory.readings[-2].step < 49  # the step before was none that was measured
    assert last.lr == 5.0 and last.lr_before == pytest.approx(1.49e-3)
    assert last.tau_before == pytest.approx(lengths[49], rel=1e-4)


def test_of_several_groups_each_has_its_rate(batch):
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.01}, {"params": model[3].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.3)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        prepared(model, optimizer, *batch)
        optimizer.step()
    assert guard.last.lr == 0.3 and guard.last.lrs == [0.01, 0.3]


CHANGES = {
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, 0.99, ("momentum", 0.9, 0.99)),
    "decay": (torch.optim.SGD, {"weight_decay": 1e-4}, -1e-4, ("weight_decay", 1e-4, -1e-4)),
    "betas": (torch.optim.Adam, {"betas": (0.9, 0.999)}, (0.9, 0.5), ("beta2", 0.999, 0.5)),
    "a little": (torch.optim.SGD, {"momentum": 0.9}, 0.91, None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_is_changed_on_the_way_is_told(name, batch):
    kind, settings, now, expected = CHANGES[name]
    model = mlp()
    optimizer = kind(model.parameters(), lr=0.01, **settings)
    memory = stepguard.records.Memory()
    with stepguard.attach(model, optimizer, cadence="every", strict=True, recorders=[memory]):
        for step in range(4):
            if step == 2:
                optimizer.param_groups[0][next(iter(settings))] = now
            prepared(model, optimizer, *batch)
            optimizer.step()
    changed = [event for event in memory.events if event.kind == "changed"]
    if expected is None:
        assert not changed
    else:
        (event,) = changed
        name, before, after = expected
        assert event.step == 2 and event.data == {"group": 0, "name": name, "before": before, "now": after}
        assert event.message == f"step 2: {name} of parameter group 0 was changed from {before:g} to {after:g}"


def test_what_a_user_counts_is_not_asked_for_the_inputs(batch):
    class Counts(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Counts.calls += 1
            return function(*args, **(kwargs or {}))

    found = []
    for guarded in (False, True):
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        guard = stepguard.attach(model, optimizer, strict=True) if guarded else None
        for _ in range(40):
            Counts.calls = 0
            optimizer.zero_grad()
            with Counts():
                loss = F.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            optimizer.step()
        found.append(Counts.calls)
        if guard:
            assert guard.last.step < 39  # so the last step was not watched
            guard.detach()
    assert found[0] == found[1]


IN_HALF = {
    "float16": lambda z, y: F.cross_entropy(z.half(), y),
    "bfloat16, by log_softmax": lambda z, y: F.nll_loss(F.log_softmax(z.bfloat16(), -1), y),
}


@pytest.mark.parametrize("name", IN_HALF)
@pytest.mark.parametrize("screen", [False, True])
def test_collapse_in_half_precision_is_seen_without_a_monitor(name, screen):
    model = nn.Linear(12, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x, y = torch.randn(40, 12), torch.randint(0, 5, (40,))
    with torch.no_grad():
        model.weight *= 30
    dtype = torch.float16 if "float16" == name else torch.bfloat16
    with stepguard.attach(model, optimizer, action="observe", cadence="every", screen=screen, strict=True) as guard:
        for _ in range(4):
            with torch.no_grad():
                expected = stepguard.softmax_collapse(model(x).to(dtype)).collapsed_N.double().mean().item()
            optimizer.zero_grad()
            IN_HALF[name](model(x), y).backward()
            optimizer.step()
    assert 0.2 < expected < 1 and guard.last.collapse == pytest.approx(expected, abs=1 / 40)
    with stepguard.attach(model, optimizer, strict=True) as guard, torch.autocast("cpu", dtype=torch.bfloat16):
        F.cross_entropy(model(x), y).backward()  # which autocast takes in float32
        optimizer.step()
    assert guard.last.r >= 0 and guard.last.collapse is None


def test_labels_may_be_bytes(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        loss = F.cross_entropy(model(batch[0]), batch[1].byte())
        loss.backward()
        optimizer.step()
    assert guard.last.loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("what", ["stepguard.guard.guard.input_sizes", "stepguard.probe.softmax.Softmax.losses"])
def test_what_is_only_told_may_fail_and_the_step_is_measured(what, batch, monkeypatch):
    def fails(*_):
        raise RuntimeError("no")

    monkeypatch.setattr(what, fails)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        prepared(model, optimizer, *batch)
        optimizer.step()
    assert guard.last.r > 0 and guard.last.estimator == "forward"
    assert guard.last.inputs is None or guard.last.loss is None


def test_what_an_optimizer_counts_in_its_groups_is_no_setting(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.param_groups[0].update(k=0, d=1e-6, weight_sum=0.0)  # as schedule-free and Prodigy do
    memory = stepguard.records.Memory()
    with stepguard.attach(model, optimizer, cadence="every", strict=True, recorders=[memory]):
        for step in range(4):
            optimizer.param_groups[0].update(k=step, d=10.0 ** (step - 6), weight_sum=float(step))
            prepared(model, optimizer, *batch)
            optimizer.step()
    assert len(memory.readings) == 4 and not [event for event in memory.events if event.kind == "changed"]
