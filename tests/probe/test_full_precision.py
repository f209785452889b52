"""A forward that switches autocast on by itself is measured in full precision, whoever wrote or wrapped it."""

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import convert_outputs_to_fp32
from reference import dense_r, mlp, parameters_of
from torch import nn

import stepguard
from stepguard.probe.kernels import differentiable


class Within(nn.Module):
    def __init__(self, autocast=True):
        super().__init__()
        self.model, self.autocast = mlp(), autocast

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.model(x).float()


def wrapped():
    """As accelerate prepares a model."""
    model = Within(autocast=False)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.model.forward))
    return model


class WithLoss(Within):
    def forward(self, x, y=None):
        z = super().forward(x)
        return z if y is None else F.cross_entropy(z, y)


FORWARDS = {"a forward of one's own": Within, "a forward that was wrapped": wrapped, "a loss inside it": WithLoss}


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("forward", FORWARDS)
def test_r_is_that_of_float64(forward, screen, batch):
    x, y = batch
    model = FORWARDS[forward]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.attach(model, optimizer, cadence="every", screen=screen, target=1e6, strict=True) as guard:
        for _ in range(6):
            old = parameters_of(model)
            optimizer.zero_grad()
            (model(x, y) if forward == "a loss inside it" else F.cross_entropy(model(x), y)).backward()
            optimizer.step()
            assert guard.last.r == pytest.approx(
                dense_r(Within(autocast=False), old, parameters_of(model), x), rel=1e-4
            )
            assert guard.last.estimator == "forward"  # a secant of bf16 logits has no digits


def test_what_was_on_is_told_and_stays_on_afterwards(batch):
    model, found = Within(), set()
    with differentiable(model, found):
        assert model.model(batch[0]).dtype == torch.float32 and not found
        with torch.autocast("cpu", torch.bfloat16):
            assert model.model(batch[0]).dtype == torch.float32
            assert torch.is_autocast_enabled("cpu")
    assert found == {"cpu"}
    with torch.autocast("cpu", torch.bfloat16):
        assert model.model(batch[0]).dtype == torch.bfloat16
