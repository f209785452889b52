"""Steps inside steps, and the way to measure SAM."""

import pytest
import pytorch_optimizer as po
import torch
from optimizers.training import backward_then_closure, batch, loss_of, made_r, plain, train, two_steps
from reference import dense_r, mlp, parameters_of
from torch import optim

import stepguard


class Twice(optim.SGD):
    """Calls the step of its base class, whose hooks fire too once a plain SGD has been made."""

    def step(self, closure=None):
        loss = super().step(closure)
        if getattr(self, "raises", False):
            raise RuntimeError("no luck")
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(0.999)
        return loss


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_that_calls_that_of_its_base_class_is_one(closure):
    optim.SGD(mlp().parameters())
    how = (
        (lambda model, optimizer, step: optimizer.step(lambda: _backward(model, optimizer, step))) if closure else plain
    )
    run = train(
        lambda model: Twice(model.parameters(), lr=0.5), how, steps=8, target=0.1, clamp_to="limit", strict=True
    )
    assert [r.step for r in run.memory.readings] == list(range(8))
    for step, reading in zip(run.steps, run.memory.readings, strict=True):
        assert step.made == pytest.approx(min(reading.r, 0.1), rel=1e-3)


def _backward(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


def test_a_step_that_raised_inside_does_not_hide_the_next():
    optim.SGD(mlp().parameters())
    model = mlp()
    optimizer = Twice(model.parameters(), lr=0.5)
    with stepguard.attach(model, optimizer, cadence="every", strict=True) as guard:
        plain(model, optimizer, 0)
        optimizer.raises = True
        with pytest.raises(RuntimeError, match="no luck"):
            plain(model, optimizer, 1)
        optimizer.raises = False
        old = parameters_of(model)
        plain(model, optimizer, 2)
        assert guard.last.r == pytest.approx(made_r(model, old, 2), rel=1e-3)


@pytest.mark.parametrize("how", [backward_then_closure, two_steps])
def test_sam_is_measured_at_its_base_optimizer_with_a_forward(how):
    sams, inputs = [], []

    def base(model):
        sams.append(po.SAM(model.parameters(), optim.SGD, lr=0.5))
        return sams[-1].base_optimizer

    def advance(model, _, step):
        inputs[:] = [batch(step)[0]]
        return how(model, sams[-1], step)

    settings = {"target": 0.1, "clamp_to": "limit", "strict": True, "forward": lambda model: model(inputs[0])}
    run = train(base, advance, steps=8, **settings)
    assert any(reading.breach for reading in run.memory.readings)
    for step, reading in zip(run.steps, run.memory.readings, strict=True):
        assert step.made == pytest.approx(min(reading.r, 0.1), rel=1e-3)


@pytest.mark.parametrize("how", [backward_then_closure, two_steps])
@pytest.mark.filterwarnings("ignore:stepguard. step 0 was not measured")  # that is what is asked here
def test_at_its_base_optimizer_without_one_sam_is_refused(how):
    sams = []

    def base(model):
        sams.append(po.SAM(model.parameters(), optim.SGD, lr=0.5))
        return sams[-1].base_optimizer

    run = train(base, lambda model, _, step: how(model, sams[-1], step), steps=3, action="observe")
    assert not run.memory.readings
    assert [e.kind for e in run.memory.events] == ["unmeasured"] * 3


def test_an_optimizer_without_groups_is_refused():
    model = mlp()
    wrapped = po.SafeFP16Optimizer(optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match="SafeFP16Optimizer has no param_groups"):
        stepguard.attach(model, wrapped)


def test_the_difference_here_is_what_dense_jacobians_say():
    model = mlp()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    for step in range(3):
        old = parameters_of(model)
        plain(model, optimizer, step)
        assert made_r(model, old, step) == pytest.approx(dense_r(model, old, parameters_of(model), batch(step)[0]))
