"""What the tests measure against: float64, dense, reverse mode; nothing shared with the code under test."""

import copy
import math

import torch
from torch import nn


def dense_slopes(model, old, update, *args):
    """J u from the whole float64 Jacobian of the logits at ``old``; parameters by name, ``[N * ..., C]``."""
    twin = copy.deepcopy(model).double()
    args = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    names = list(old)

    def logits(*values):
        out = torch.func.functional_call(twin, dict(zip(names, values, strict=True)), tuple(args))
        return out[0] if isinstance(out, tuple) else out

    at = tuple(old[n].detach().double() for n in names)
    jacobians = torch.autograd.functional.jacobian(logits, at)
    out = logits(*at)
    slopes = sum(
        torch.tensordot(j, update[n].double(), dims=update[n].ndim) for j, n in zip(jacobians, names, strict=True)
    )
    assert slopes.shape == out.shape
    return slopes


def dense_r(model, old, new, *args):
    """The batch's r of the move from ``old`` to ``new``, classes last."""
    update = {n: new[n].double() - old[n].double() for n in old}
    slopes = dense_slopes(model, old, update, *args)
    return float((slopes.amax(-1) - slopes.amin(-1)).max() / math.pi)


def parameters_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def mlp(dropout=0.0):
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 5))
