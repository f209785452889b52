"""A secant where it is enough, forward mode where it matters."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from reference import dense_r, mlp, parameters_of
from torch import nn

import stepguard
from stepguard.probe import outline
from stepguard.probe.outline import KeptLogits
from stepguard.records import Memory


def train(model, lr, loss=None, count=12, **settings):
    """Readings, and the true r of the step that the optimizer asked for, if it was made as it was asked for."""
    torch.manual_seed(0)
    memory, made = Memory(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with stepguard.attach(model, optimizer, cadence="every", recorders=[memory], strict=True, **settings):
        for _ in range(count):
            x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
            old = parameters_of(model)
            optimizer.zero_grad()
            (loss or (lambda m, x, y: F.cross_entropy(m(x), y)))(model, x, y).backward()
            optimizer.step()
            made.append(dense_r(model, old, parameters_of(model), x))
    return memory.readings, made


def by_secant(readings):
    return [r.step for r in readings if r.estimator == "secant"]


CHECKS = [0, 1, 3, 7]


def test_right_to_a_few_percent_and_exact_at_the_checks():
    readings, made = train(mlp(), lr=0.1, screen=True)
    assert by_secant(readings) == [step for step in range(12) if step not in CHECKS]
    for reading, r in zip(readings, made, strict=True):
        assert reading.r == pytest.approx(r, rel=0.05 if reading.estimator == "secant" else 1e-4)


def test_near_the_target_forward_mode_decides():
    readings, made = train(mlp(), lr=0.1, screen=True, target=0.05)
    assert [r.step for r in readings if r.r > 0.05] and not [
        r for r in readings if r.estimator == "secant" and r.r > 0.045
    ]
    assert max(made) < 0.05 * (1 + 1e-4)


def test_not_unless_it_is_asked_for():
    readings, _ = train(mlp(), lr=0.1)
    assert by_secant(readings) == []


@pytest.mark.parametrize("batches", [1, 3])
def test_with_several_batches_the_largest_counts(batches):
    def loss(model, x, y):
        return sum(
            F.cross_entropy(model(part), label) for part, label in zip(x.chunk(batches), y.chunk(batches), strict=True)
        )

    readings, made = train(mlp(), lr=0.1, loss=loss, screen=True)
    assert by_secant(readings)
    assert [r.r for r in readings] == pytest.approx(made, rel=0.05)


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x, y=None):
        return self.model(x) if y is None else F.cross_entropy(self.model(x), y)


def masked(m, x, y):
    return F.cross_entropy(m(x).masked_fill(torch.arange(5) == 4, -torch.inf), y.clamp(max=3))


def autocast(m, x, y):
    with torch.autocast("cpu", torch.bfloat16):
        return F.cross_entropy(m(x), y)


@pytest.mark.parametrize(
    "build, loss",
    [(Inside, lambda m, x, y: m(x, y)), (mlp, masked), (mlp, autocast)],
    ids=["inside the model", "masked", "autocast"],
)
def test_where_it_cannot_be_taken_forward_mode_is(build, loss):
    readings, _ = train(build(), lr=0.1, loss=loss, screen=True)
    assert len(readings) == 12 and by_secant(readings) == []


def test_logits_that_were_changed_since_are_not_compared_with():
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    with stepguard.attach(model, optimizer, cadence="every", screen=True, recorders=[memory], strict=True):
        for step in range(12):
            optimizer.zero_grad()
            z = model(x)
            F.cross_entropy(z, y).backward()
            if step > 8:
                z.detach().mul_(1.0)
            optimizer.step()
    assert by_secant(memory.readings) == [2, 4, 5, 6, 8]


def test_no_logits_outlive_their_step(monkeypatch):
    kept = weakref.WeakSet()

    class Followed(KeptLogits):
        __slots__ = ("__weakref__",)

        def __init__(self, tensor):
            super().__init__(tensor)
            kept.add(self)

    monkeypatch.setattr(outline, "KeptLogits", Followed)
    model, seen = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, cadence="every", screen=True, strict=True):
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 12)), torch.zeros(8, dtype=torch.long)).backward()
            seen.append(len(kept))
            optimizer.step()
            gc.collect()
            seen.append(len(kept))
    assert seen == [1, 0] * 4
