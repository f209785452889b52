"""What a guard holds: two copies of the parameters, and of a watched step the logits; nothing once it is detached."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepguard
from benchmarks.memory_use import peak_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Memory block of unknown size")


class Run:
    def __init__(self, batch, classes=32):
        torch.manual_seed(0)
        layers = [nn.Linear(256, 384), nn.GELU()] + 5 * [nn.Linear(384, 384), nn.GELU()]
        self.model = nn.Sequential(*copy.deepcopy(layers), nn.Linear(384, classes))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, foreach=True)
        self.x, self.y = torch.randn(batch, 256), torch.randint(classes, (batch,))
        self.size = sum(4 * p.numel() for p in self.model.parameters())
        self.step(3)
        self.optimizer.zero_grad()

    def step(self, count):
        for _ in range(count):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x), self.y).backward()
            self.optimizer.step()

    def guarded(self, **settings):
        with stepguard.attach(self.model, self.optimizer, strict=True, **settings) as guard:
            self.step(6)
            self.guard = guard  # whoever keeps it keeps nothing else
            return [t.untyped_storage() for t in guard._change._movement.old + guard._change._movement.update]


@pytest.mark.parametrize("settings", [{}, {"cadence": "every", "screen": True}])
@pytest.mark.parametrize("batch", [4, 1024])
@pytest.mark.parametrize("estimator", ["forward", "difference"])
def test_two_copies_of_the_parameters_and_the_logits(settings, batch, estimator, monkeypatch):
    if estimator == "difference":
        monkeypatch.setattr("stepguard.probe.estimator._spreads_along", lambda rerun: 1 / 0)
        monkeypatch.setattr("warnings.warn", lambda *args, **kwargs: None)
    plain, run = Run(batch), Run(batch)
    extra = peak_bytes(lambda: run.guarded(**settings)) - peak_bytes(lambda: plain.step(6))
    logits = 4 * batch * 32
    assert run.size < extra < 2.05 * run.size + 1.05 * logits


def test_nothing_is_held_once_it_is_detached():
    run = Run(64)
    buffers = [weakref.ref(storage) for storage in run.guarded()]
    gc.collect()
    assert buffers and not any(buffer() for buffer in buffers)
