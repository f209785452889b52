"""A resumed guard begins with the very step that the uninterrupted one would have made."""

import copy

import torch
import torch.nn.functional as F
from reference import mlp

import stepguard
from stepguard.records import Memory


def train(model, optimizer, batch, steps, explodes=False):
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(batch[0]), batch[1]) * (1e6 if explodes else 1.0)).backward()
        optimizer.step()


def test_a_step_that_nobody_watched_is_shortened_as_it_would_have_been(batch):
    model, memory = mlp(), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    settings = {"budget": 1e-6, "clamp_to": "limit"}  # readings are as far apart as can be
    with stepguard.attach(model, optimizer, recorders=[memory], **settings) as guard:
        train(model, optimizer, batch, 160)
        model_2 = copy.deepcopy(model)
        optimizer_2 = torch.optim.SGD(model_2.parameters(), lr=1e-3)
        state = copy.deepcopy(guard.state_dict())
        train(model, optimizer, batch, 1, explodes=True)
    whole = guard.last
    assert whole.estimator == "prediction" and whole.scale < 1
    with stepguard.attach(model_2, optimizer_2, **settings) as guard:
        guard.load_state_dict(state)
        train(model_2, optimizer_2, batch, 1, explodes=True)
    assert guard.last._replace(cost_share=None) == whole._replace(cost_share=None)
    torch.testing.assert_close(model_2.state_dict(), model.state_dict(), rtol=0, atol=0)
