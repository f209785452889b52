"""Where it costs next to nothing every step is watched, so that none comes as a surprise."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepguard
from stepguard.guard.pacing import Pacing
from stepguard.guard.policy import Settings
from stepguard.guard.ranks import Ranks


def calm_pacing(step_takes, watching_takes):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pacing = Pacing(Settings().checked(), optimizer, Ranks(model, optimizer, model))
    for step in range(80):
        if pacing.worth_watching(step):
            pacing.watched(watching_takes)
        if pacing.why(step, [1.0], False)[0]:
            pacing.read(step, 1e-3, [1.0], seconds=1e-3)
        else:
            pacing.unread(step_takes)
    return pacing


COSTS = {"a long step": (0.1, 2e-4, True), "a short step": (1e-3, 2e-4, False)}


@pytest.mark.parametrize("name", COSTS)
def test_calm_steps_are_watched_where_that_is_cheap(name):
    step, watching, wanted = COSTS[name]
    pacing = calm_pacing(step, watching)
    assert [pacing.worth_watching(n) for n in range(81, 84)] == [wanted] * 3
    again = calm_pacing(1e-3, 1.0)
    again.load_state_dict(pacing.state_dict())
    assert again.worth_watching(81) == wanted


def test_a_surprise_is_measured_and_explained_in_a_model_whose_steps_are_long():
    class Slow(nn.Linear):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    model = Slow(12, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    with stepguard.attach(model, optimizer, strict=True) as guard:
        for step in range(40):
            given = x.clone()
            given[3] *= 1e5 if step == 39 else 1.0
            optimizer.zero_grad()
            F.cross_entropy(model(given), y).backward()
            optimizer.step()
    assert guard.last.step == 39 and guard.last.estimator == "forward" and guard.last.breach
    assert guard.culprit.sample == 3 and guard.last.r_median < guard.last.r / 100
