"""Short forms of the benchmark in benchmarks/lr_spike.py: what the project promises on real data."""

import pytest

from benchmarks.lr_spike import median, outcome
from stepguard.cli.spike.digits import digits_in_order, digits_stratified
from stepguard.cli.spike.models import MODELS
from stepguard.cli.spike.training import Run, Spike

HELD = Spike(factor=1e4, start=50)
ONCE = Spike(factor=1e4, start=50, length=1)


def a1(seed, **changes):
    run = Run(
        MODELS["mlp"], digits_stratified(seed), seed, lr=1e-3, steps=200, batch_size=64, spike=HELD, clamp_to="limit"
    )
    return run._replace(**changes)


def test_a1_a_held_spike_destroys_plain_training():
    plain = outcome(a1(0))
    assert plain.final < 15 and plain.asked_at_spike > 100 and plain.largest_taken > 1000


@pytest.mark.parametrize(("whole_set", "published"), [(True, 96.4), (False, 96.9)])
def test_a1_the_guarded_run_carries_on(whole_set, published):
    runs = [outcome(a1(seed, action="clamp"), whole_set) for seed in range(3)]
    assert max(r.largest_taken for r in runs) <= 1 + 1e-4
    assert median(runs).final >= published - 1 and min(r.lowest for r in runs) > 60


@pytest.mark.parametrize(("model", "lowest", "final"), [("transformer", 91.9, 92.4), ("mlp-ln", 93.8, 93.8)])
def test_a2_one_step_of_spike(model, lowest, final):
    run = Run(MODELS[model], digits_in_order(), seed=0, lr=0.015, steps=80, spike=ONCE, clamp_to="limit")
    plain, guarded = outcome(run), outcome(run._replace(action="clamp"))
    assert plain.lowest < 15
    assert guarded.largest_taken <= 1 + 1e-4
    assert guarded.lowest >= lowest - 2 and guarded.final >= final - 2


def test_a2_batch_norm_held_spike():
    run = Run(MODELS["cnn-bn"], digits_in_order(), seed=0, lr=0.015, steps=9, spike=Spike(1e4, start=5))
    guarded = outcome(run._replace(action="clamp"))
    assert guarded.largest_taken <= 1 + 1e-4 and guarded.asked_at_spike > 100


def test_a1_back_to_calm_is_as_if_nothing_had_happened():
    for seed in range(3):
        usual, held = outcome(a1(seed, spike=None)), outcome(a1(seed, action="clamp", clamp_to="calm"))
        assert held.final == pytest.approx(usual.final, abs=1) and held.lowest == pytest.approx(usual.lowest, abs=2)


@pytest.mark.parametrize("model", ["transformer", "mlp-ln"])
def test_a2_back_to_calm_is_as_if_nothing_had_happened(model):
    run = Run(MODELS[model], digits_in_order(), seed=0, lr=0.015, steps=80, action="clamp")
    usual, held = outcome(run), outcome(run._replace(spike=HELD))
    assert held.largest_taken <= 1 + 1e-4
    assert held.final == pytest.approx(usual.final, abs=1) and held.lowest == pytest.approx(usual.lowest, abs=2)
