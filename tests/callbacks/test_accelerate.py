"""stepguard.attach in a loop of accelerate's, before or after it prepared everything."""

import copy
import math
import os

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from reference import dense_r, mlp, parameters_of
from torch.utils.data import DataLoader, TensorDataset
from toy_trainers import assert_bits, causal_lm, central_r, data

import stepguard

PLACES = {"before prepare": False, "after prepare": True}
PRECISIONS = {"float32": "no", "bf16": "bf16"}


@pytest.fixture(autouse=True)
def one_after_another(monkeypatch):
    """Accelerate's settings belong to the process: a Trainer's are left behind, and one's own cannot be changed."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def start(after, precision="no", accumulate=1, build=mlp, lr=10.0, **settings):
    """Everything that a loop has; the guard is attached to what there is before or after ``prepare``."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    settings = {"target": 0.2, "cadence": "every", "strict": True, **settings}
    if not after:
        guard = stepguard.attach(model, optimizer, schedule=scheduler, **settings)
    x = torch.randn(32, 12, generator=torch.Generator().manual_seed(5))
    y = torch.randint(0, 5, (32,), generator=torch.Generator().manual_seed(6))
    loader = DataLoader(data(causal_lm, 32) if build is causal_lm else TensorDataset(x, y), batch_size=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if after:
        guard = stepguard.attach(model, optimizer, schedule=scheduler, **settings)
    return accelerator, model, optimizer, loader, scheduler, guard


def train(accelerator, model, optimizer, loader, scheduler, guard, clip=None, skip=0, stop=None):
    """Yields, after each optimizer step, the parameters around it, its micro-batches and the guard's reading."""
    batches, old = [], parameters_of(model)
    for index, batch in enumerate(loader):
        if index < skip:
            continue
        with accelerator.accumulate(model):
            batches.append(batch)
            loss = model(**batch).loss if isinstance(batch, dict) else F.cross_entropy(model(batch[0]), batch[1])
            accelerator.backward(loss)
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            yield old, parameters_of(model), batches, guard.last
            batches, old = [], parameters_of(model)
        if index + 1 == stop:
            return


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES)
def test_every_step_has_the_reference_r_and_keeps_to_the_target(place, precision, accumulate):
    parts = start(PLACES[place], PRECISIONS[precision], accumulate)
    worst = 0.0
    for step, (old, new, batches, last) in enumerate(train(*parts)):
        r = max(dense_r(mlp(), old, new, x) for x, _ in batches)
        assert last.step == step and r == pytest.approx(last.r * last.scale, rel=1e-3)
        worst = max(worst, r)
    assert step == 8 // accumulate - 1 and worst == pytest.approx(0.2, rel=1e-3)
    parts[-1].detach()
    assert not parts[2].optimizer._optimizer_step_pre_hooks and not parts[1]._forward_hooks


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES)
def test_a_causal_lm_with_its_loss_inside(place, precision):
    parts = start(PLACES[place], PRECISIONS[precision], build=causal_lm, lr=50.0)
    for old, new, batches, last in train(*parts, stop=3):
        assert central_r(causal_lm, old, new, batches) == pytest.approx(last.r * last.scale, rel=1e-3)
    assert last.scale < 1


def test_clipping_comes_first():
    parts = start(after=True, lr=1.0, action="observe")
    *_, last = next(train(*parts, clip=0.01))
    assert last.tau == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("place", PLACES)
def test_observe_is_invisible_to_the_bit(place, precision):
    results = []
    for guarded in (True, False):
        parts = start(PLACES[place], PRECISIONS[precision], 2, lambda: mlp(0.3), action="observe")
        if not guarded:
            parts[-1].detach()
        list(train(*parts))
        results.append([parts[1].state_dict(), parts[2].state_dict(), parts[4].state_dict(), torch.get_rng_state()])
    assert_bits(*results)


@pytest.mark.parametrize("place", PLACES)
def test_forecasts_know_the_schedule(place):
    parts = start(PLACES[place], lr=1e-3)
    list(train(*parts))
    outlook = parts[-1]._outlook
    outlook._look_ahead(8, -1.0)
    assert outlook.rate(10) == pytest.approx(1e-3 * 0.9**10, rel=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_resumed_equals_uninterrupted(place, tmp_path):
    def everything(parts):
        return [parts[1].state_dict(), parts[2].state_dict(), parts[4].state_dict(), torch.get_rng_state()]

    settings = {"build": lambda: mlp(0.3), "cadence": "auto"}
    whole = start(PLACES[place], **settings)
    whole[0].register_for_checkpointing(whole[-1])
    list(train(*whole, stop=5))
    whole[0].save_state(tmp_path / "half")
    list(train(*whole, skip=5))
    want = copy.deepcopy(everything(whole))
    again = start(PLACES[place], **settings)
    again[0].register_for_checkpointing(again[-1])
    again[0].load_state(tmp_path / "half")
    assert again[-1].step == 5
    list(train(*again, skip=5))
    assert_bits(everything(again), want)
    last = [parts[-1].last._replace(cost_share=None) for parts in (again, whole)]
    assert last[0] == last[1] and last[0].step == 7 and math.isfinite(last[0].r)
