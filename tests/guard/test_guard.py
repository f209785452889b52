import copy
import math
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from reference import dense_r, mlp, parameters_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import stepguard
from stepguard.guard.calm import Asked
from stepguard.probe import NOTHING_SEEN
from stepguard.records import Memory


def step(model, optimizer, batch, **loss):
    x, y = batch
    optimizer.zero_grad()
    F.cross_entropy(model(x), y, **loss).backward()
    optimizer.step()


def closure_of(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5),
    "SGD, momentum and decay": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.02),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "groups": lambda p: torch.optim.Adam([{"params": (q := list(p))[:2], "lr": 0.2}, {"params": q[2:], "lr": 0.02}]),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("target", [1.0, 0.1])
def test_r_of_the_update_really_made_and_its_clamp(name, target, batch):
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    twin = mlp()
    twin.load_state_dict(model.state_dict())
    free = OPTIMIZERS[name](twin.parameters())
    with stepguard.attach(model, optimizer, target=target, strict=True) as guard:
        for index in range(6):
            old = parameters_of(model)
            twin.load_state_dict(old)
            step(twin, free, batch)  # the same step, unguarded: same parameters, same optimizer state
            step(model, optimizer, batch)
            asked = dense_r(twin, old, parameters_of(twin), batch[0])
            taken = dense_r(model, old, parameters_of(model), batch[0])
            assert guard.last.step == index
            assert guard.last.r == pytest.approx(asked, rel=1e-5)
            assert taken == pytest.approx(min(asked, target), rel=1e-4)
            assert guard.last.scale == pytest.approx(min(1, target / asked), rel=1e-5)


def test_the_reading_adds_up(batch):
    model = mlp()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 50.0}], 5.0)
    memory = Memory()
    with stepguard.attach(model, optimizer, recorders=[memory]) as guard:
        old = parameters_of(model)
        step(model, optimizer, batch)
    moved = math.sqrt(sum((p - old[n]).double().square().sum().item() for n, p in model.named_parameters()))
    last = guard.last
    assert last.tau * last.scale == pytest.approx(moved, rel=1e-5)
    assert last.rho == pytest.approx(last.tau / last.r) and last.spread == pytest.approx(math.pi * last.r)
    assert last.lr == 50.0 and last.lr_applied == pytest.approx(50 * last.scale)
    assert memory.readings == [last]
    found, event, culprit = memory.events
    assert (found.step, found.kind) == (
        0,
        "found",
    ) and "cross_entropy of Sequential, measured by forward" in found.message
    assert event.kind == "clamp" and event.reading == last
    assert culprit.kind == "culprit" and guard.culprit.spread == pytest.approx(last.spread)
    assert "step 0: r = " in event.message and f"scaled by {last.scale:.3g}" in event.message


def test_learning_rate_is_left_to_the_scheduler(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with stepguard.attach(model, optimizer) as guard:
        for lr in (100.0, 50.0, 25.0):
            assert optimizer.param_groups[0]["lr"] == lr
            step(model, optimizer, batch)
            scheduler.step()
            assert guard.last.lr == lr and guard.last.lr_applied < lr


def test_drive_makes_every_step_as_long_as_the_target(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with stepguard.attach(model, optimizer, action="drive", target=0.2, strict=True) as guard:
        for _ in range(3):
            old = parameters_of(model)
            step(model, optimizer, batch)
            assert guard.last.scale > 1
            assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(0.2, rel=1e-4)


def test_observe_tells_but_lets_through(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    with stepguard.attach(model, optimizer, action="observe", recorders=[memory]) as guard:
        old = parameters_of(model)
        step(model, optimizer, batch)
    assert guard.last.scale == 1 and guard.last.r > 1
    assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(guard.last.r, rel=1e-5)
    assert [e.kind for e in memory.events] == ["found", "breach", "culprit"]


def test_accumulation_measures_every_micro_batch(batch):
    x, y = batch
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old = parameters_of(model)
        optimizer.zero_grad()
        for part in range(3):
            rows = slice(2 * part, 2 * part + 2)
            (F.cross_entropy(model(x[rows]), y[rows]) / 3).backward()
        optimizer.step()
    new = parameters_of(model)
    assert guard.last.r == pytest.approx(dense_r(model, old, new, x), rel=1e-5)
    parts = [dense_r(model, old, new, x[2 * i : 2 * i + 2]) for i in range(3)]
    assert guard.last.r == pytest.approx(max(parts), rel=1e-5) and min(parts) < 0.99 * max(parts)


def test_clipping_before_it_is_seen(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe") as guard:
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
    assert guard.last.tau == pytest.approx(0.01, rel=1e-3)


def test_closures_and_the_batch_inside_them(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        old = parameters_of(model)
        loss = optimizer.step(closure_of(model, optimizer, batch))
    assert loss.item() > 0 and guard.last.scale < 1
    assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(1.0, rel=1e-4)


def test_lbfgs_calls_its_closure_often(batch):
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=8)
    with stepguard.attach(model, optimizer, target=0.3) as guard:
        old = parameters_of(model)
        optimizer.step(closure_of(model, optimizer, batch))
    assert guard.last.r > 0.3
    assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(0.3, rel=1e-3)


def test_frozen_parameters_stay_and_do_not_count(batch):
    model = mlp()
    for p in model[0].parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    with stepguard.attach(model, optimizer, strict=True):
        old = parameters_of(model)
        step(model, optimizer, batch)
    new = parameters_of(model)
    assert torch.equal(old["0.weight"], new["0.weight"])
    assert dense_r(model, old, new, batch[0]) == pytest.approx(1.0, rel=1e-4)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def logits(self, tokens):
        return self.head(self.embed(tokens).tanh())

    def forward(self, tokens):
        return {"logits": self.logits(tokens)}


class TiedLogits(Tied):
    forward = Tied.logits


def test_tied_weights_and_token_losses():
    model, tokens = Tied(), torch.randint(0, 7, (2, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        old = parameters_of(model)
        F.cross_entropy(model(tokens)["logits"].flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    assert guard.last.r > 1
    assert dense_r(TiedLogits(), old, parameters_of(model), tokens) == pytest.approx(1.0, rel=1e-4)


def test_segmentation_classes_in_dimension_one():
    model, x = nn.Conv2d(2, 3, 1), torch.randn(2, 2, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=20.0)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old = parameters_of(model)
        F.cross_entropy(model(x), torch.randint(0, 3, (2, 4, 4))).backward()
        optimizer.step()
    u = {n: p - old[n] for n, p in parameters_of(model).items()}
    slopes = F.conv2d(x, u["weight"], u["bias"])  # linear, so the slopes are the update's own output
    assert guard.last.r == pytest.approx(float((slopes.amax(1) - slopes.amin(1)).max() / math.pi), rel=1e-5)


def test_a_step_on_ignored_samples_only_is_of_no_consequence():
    model, x = nn.Conv2d(2, 3, 1), torch.randn(2, 2, 4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    ignored = torch.full((2, 4, 4), -100)
    with stepguard.attach(model, optimizer) as guard:
        F.cross_entropy(model(x), ignored, reduction="sum").backward()
        optimizer.step()
        assert guard.last.r == 0 < guard.last.tau
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.ones(2, 4, 4, dtype=torch.long)).backward()
        optimizer.step()
    assert guard.last.step == 1 and guard.last.r > 0


def test_dropout_is_measured_with_the_mask_that_trained(batch):
    model = mlp(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old, before = parameters_of(model), torch.get_rng_state()
        step(model, optimizer, batch)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        twin = copy.deepcopy(model)
        mask = twin[2](torch.ones(6, 16))
        twin[2] = nn.Identity()
        twin[1].register_forward_hook(lambda m, i, out: out * mask)
    assert guard.last.r == pytest.approx(dense_r(twin, old, parameters_of(model), batch[0]), rel=1e-5)
    assert not torch.equal(before, after)


def test_forward_and_quantile(batch):
    model = mlp()
    x = torch.randn(40, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = {"action": "observe", "forward": lambda m: m(x)}
    with (
        stepguard.attach(model, optimizer, **settings) as whole,
        stepguard.attach(model, optimizer, quantile=0.5, **settings) as median,
    ):
        old = parameters_of(model)
        step(model, optimizer, batch)
    assert whole.last.r == pytest.approx(dense_r(model, old, parameters_of(model), x), rel=1e-5)
    assert 0 < median.last.r < 0.9 * whole.last.r


def test_logits_picked_by_the_user_for_a_binary_head():
    model, x = nn.Linear(3, 1), torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    pick = lambda z: torch.cat([torch.zeros_like(z), z], -1)  # noqa: E731
    with stepguard.attach(model, optimizer, logits=pick, strict=True) as guard:
        old = parameters_of(model)
        F.binary_cross_entropy_with_logits(model(x), torch.ones(5, 1)).backward()
        optimizer.step()
    move = x @ (model.weight - old["weight"]).T + model.bias - old["bias"]
    assert guard.last.r > 1 and move.abs().max().item() == pytest.approx(math.pi, rel=1e-4)


def test_a_temperature_the_user_tells(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    with stepguard.attach(model, optimizer, logits=lambda z: z / 0.1, strict=True) as guard:
        old = parameters_of(model)
        F.cross_entropy(model(batch[0]) / 0.1, batch[1]).backward()
        optimizer.step()
    assert guard.last.r > 1
    assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(0.1, rel=1e-4)


def test_a_cadence_of_three_measures_every_third_step(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, cadence=3, recorders=[memory]) as guard:
        for _ in range(7):
            step(model, optimizer, batch)
    assert [r.step for r in memory.readings] == [0, 3, 6] and guard.step == 7


def test_a_step_that_moves_nothing_is_skipped(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with stepguard.attach(model, optimizer, strict=True, recorders=[memory]) as guard:
        step(model, optimizer, batch)
    assert guard.last is None and [e.kind for e in memory.events] == ["skipped"]


def test_the_cost_is_told(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, recorders=[memory]):
        for _ in range(3):
            step(model, optimizer, batch)
    first, *others = (r.cost_share for r in memory.readings)
    assert first is None and all(0 < share < 1 for share in others)


def test_detach_leaves_nothing_behind(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    guard = stepguard.attach(model, optimizer)
    guard.detach()
    guard.detach()
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    step(model, optimizer, batch)
    assert guard.last is None


def test_no_batch_outlives_its_step():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer):
        x = torch.randn(4, 12)
        alive = weakref.ref(x)
        step(model, optimizer, (x, torch.zeros(4, dtype=torch.long)))
        del x
        assert alive() is None
        for mode, calls in (model.eval, 1), (model.train, 2):
            mode()
            forgotten = torch.randn(4, 12)
            alive = weakref.ref(forgotten)
            model(forgotten)  # under grad, never used for a loss
            del forgotten
            for _ in range(1, calls):  # the last batch, not what came of it, is there up to the step
                model(torch.randn(4, 12))
            assert alive() is None


def test_an_evaluation_under_grad_does_not_count(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old = parameters_of(model)
        model(100 * torch.randn(50, 12))
        step(model, optimizer, batch)
    assert guard.last.r == pytest.approx(dense_r(model, old, parameters_of(model), batch[0]), rel=1e-5)


def test_copies_and_pickles_of_a_guarded_model_are_not_guarded(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(batch[0]), model(batch[0]))
            x = torch.randn(6, 12)
            alive = weakref.ref(x)
            F.cross_entropy(twin(x), batch[1]).backward()
            del x
            assert alive() is None  # nobody remembers what the copy was called with
        copy.deepcopy(optimizer)
        step(model, optimizer, batch)
        assert guard.step == 1 and guard.last.r > 0


def test_under_autocast_it_measures_in_full_precision(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    old = parameters_of(model)
    with torch.autocast("cpu", torch.bfloat16), stepguard.attach(model, optimizer, strict=True) as guard:
        step(model, optimizer, batch)
    assert guard.last.r > 1
    assert dense_r(model, old, parameters_of(model), batch[0]) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_grad_scaler_skips(fused, batch):
    x, y = batch
    model, memory = mlp(), Memory()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with stepguard.attach(model, optimizer, strict=True, recorders=[memory]) as guard:
        for inputs in (x, x * math.inf, x):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(inputs), y)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert scaler.get_scale() == 4.0 and all(p.isfinite().all() for p in model.parameters())
    assert len(memory.readings) == 2 and all(math.isfinite(r.r) for r in memory.readings)
    assert [e.kind for e in memory.events] == (["found", "skipped"] if fused else ["found"])
    assert guard.last.scale == 1


def test_micro_batches_whose_gradients_never_reach_grad(batch):
    x, y = batch
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old, params = parameters_of(model), list(model.parameters())
        parts = [torch.autograd.grad(F.cross_entropy(model(size * x), y), params) for size in (20, 1)]
        for p, *grads in zip(params, *parts, strict=True):
            p.grad = sum(grads)
        optimizer.step()
    assert guard.last.r == pytest.approx(dense_r(model, old, parameters_of(model), 20 * x), rel=1e-5)


def test_a_checkpointed_model_is_one_call(batch):
    x, y = batch
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old = parameters_of(model)
        for size in (20, 1):
            F.cross_entropy(checkpoint(model, size * x, use_reentrant=False), y).backward()
        optimizer.step()
    assert guard.last.r == pytest.approx(dense_r(model, old, parameters_of(model), 20 * x), rel=1e-5)


def test_an_optimizer_without_a_learning_rate(batch):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer) as guard:
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.register_step_post_hook(lambda *_: None)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = None
        guard._change._movement.begin(optimizer)
        guard._report(NOTHING_SEEN, 0.5, Asked(1.0, [], 1), 1.0, "told", "forward")
    assert math.isnan(guard.last.lr)


def test_inputs_that_ask_for_gradients_are_inputs(batch):
    model, shift = mlp(), torch.zeros(6, 12, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, strict=True) as guard:
        F.cross_entropy(model(batch[0] + shift), batch[1]).backward()
        optimizer.step()
    assert guard.last.r > 0


def test_the_mode_that_trained_is_the_mode_that_is_measured(batch):
    model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with stepguard.attach(model, optimizer, action="observe", strict=True) as guard:
        old = parameters_of(model)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        model.eval()
        optimizer.step()
        assert not any(m.training for m in model.modules())
    model.train()
    assert guard.last.r == pytest.approx(dense_r(model, old, parameters_of(model), batch[0]), rel=1e-5)
