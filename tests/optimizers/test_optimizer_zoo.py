"""Every optimizer under a guard: r stays at its target, the state stays sound, and no step takes the last one back."""

import functools

import pytest
import pytorch_optimizer as po
import torch
from optimizers.measure import leaves, measure, state_is_finite
from optimizers.training import train
from optimizers.zoo import CASES, LEFT_OUT, OTHERS, TORCH, WELL_KNOWN, classes
from torch import optim

pytestmark = [
    # What an optimizer says of itself is not about the guard: AdaHessian and SophiaH need a graph of the gradients.
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),
]
NAMES = [*TORCH, *WELL_KNOWN, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
MEASURED = [name for name in NAMES if CASES[getattr(name, "values", [name])[0]].measured]
each = pytest.mark.parametrize("name", NAMES)
each_measured = pytest.mark.parametrize("name", MEASURED)


@functools.cache
def found(name):
    return measure(CASES[name])


@each_measured
def test_no_step_is_longer_than_the_target(name):
    runs = found(name)
    assert runs.over <= 1 + 1e-3
    assert any(step.scale < 1 for step in runs.spiked.steps) or any(step.scale < 1 for step in runs.bound.steps)
    for run in (runs.spiked, runs.bound):
        kinds = [event.kind for event in run.memory.events]
        assert "unmeasured" not in kinds
        assert len(run.memory.readings) + kinds.count("skipped") == len(run.steps), "once a step"


@each_measured
def test_the_state_stays_sound_and_training_goes_on(name):
    runs = found(name)
    assert state_is_finite(runs.spiked.optimizer) and state_is_finite(runs.bound.optimizer)
    free, spiked = runs.losses
    assert spiked <= free + CASES[name].worse


@each_measured
def test_the_step_after_a_spike_is_no_rebound(name):
    runs = found(name)
    assert not runs.rebound > CASES[name].rebound  # TRAC makes no step there
    if not CASES[name].says:
        assert runs.lasts <= CASES[name].lasts


@each
def test_what_attach_says(name):
    said = [e for e in found(name).spiked.memory.events if e.step == 0 and e.kind in ("caution", "unmeasured")]
    if CASES[name].says:
        assert CASES[name].says in said[0].message
        assert said[0].kind == ("caution" if CASES[name].measured else "unmeasured")
    else:
        assert not said


@each
def test_observe_changes_nothing(name):
    case = CASES[name]
    how = {"make": case.make, "advance": case.advance, "build": case.build, "steps": 12}
    alone, watched = train(**how), train(**how, action="observe")
    assert [step.loss for step in alone.steps] == [step.loss for step in watched.steps]
    one, other = list(_everything(alone)), list(_everything(watched))
    assert len(one) == len(other) > 4
    differing = [(a, b) for a, b in zip(one, other, strict=True) if not _same(a, b)]
    assert not differing


def test_no_optimizer_is_forgotten():
    made = {type(case.make(case.build())) for case in CASES.values()}
    for package in (optim, po):
        missing = {name for name, kind in classes(package).items() if kind not in made}
        assert missing - set(LEFT_OUT) == set()


def _everything(run):
    yield from run.model.parameters()
    yield from leaves(run.optimizer.state)
    yield from leaves([{**group, "params": None} for group in run.optimizer.param_groups])


def _same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())
    return type(one) is type(other) and (one == other or not isinstance(one, (str, int, float, type(None))))
