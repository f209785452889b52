"""A small run with a guard and a collapse monitor on it, and a list of what a fault has left behind."""

import copy
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack

import stepguard
from stepguard.records import Memory

X = torch.randn(6, 12, generator=torch.Generator().manual_seed(7))
Y = torch.arange(6) % 5


class Net(nn.Module):
    """Everything that a replay has to put back: batch statistics, dropout, and an attribute that a forward moves."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))
        self.head, self.calls = nn.Linear(16, 5), 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x))


class Run:
    """One training run; with a target of 0.02 every step is clamped.

    Args:
        settings: The guard's; None is an unguarded run.
    """

    def __init__(self, settings=None, monitored=True, make=lambda p: torch.optim.AdamW(p, lr=0.01), build=Net):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        self.model, self.memory, self.on = build(), Memory(), []
        self.optimizer = make(self.model.parameters())
        if settings is not None:
            self.guard = stepguard.attach(
                self.model, self.optimizer, **{"cadence": "every", "recorders": [self.memory], **settings}
            )
            self.on = [self.guard]
            if monitored:
                self.monitor = stepguard.monitor_collapse(
                    self.model, self.optimizer, cadence=1, recorders=[self.memory]
                )
                self.on.append(self.monitor)

    def backward(self, x=X):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), Y)
        loss.backward()
        return loss

    def steps(self, count=1):
        for _ in range(count):
            self.backward()
            self.optimizer.step()

    def detach(self):
        for each in self.on:
            each.detach()

    def parameters(self):
        return [p.detach().clone() for p in self.model.parameters()]

    def buffers(self):
        return [b.clone() for b in self.model.buffers()]

    def measured(self):
        return [r.step for r in self.memory.readings]


def everything(run):
    """What promise 1 is about, to be compared bit for bit."""
    return {
        "parameters and buffers": {n: t.clone() for n, t in run.model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in run.model.parameters()],
        "state of the optimizer": [
            {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in s.items()}
            for s in run.optimizer.state.values()
        ],
        **around(run),
    }


def around(run):
    """What is beside the parameters: the model's attributes and modes, random numbers, the state of PyTorch."""
    modules = list(run.model.modules())
    return {
        "tensors of modules": [[id(t) for t in (*m._parameters.values(), *m._buffers.values())] for m in modules],
        "memory of tensors": [t.data_ptr() for t in (*run.model.parameters(), *run.model.buffers())],
        "training": [m.training for m in modules],
        "attributes": run.model.calls,
        "torch's random numbers": torch.get_rng_state(),
        "Python's": random.getstate(),
        "NumPy's": np.random.get_state()[1].tolist(),
        **of_torch(),
    }


def of_torch():
    """The modes and flags of PyTorch on this thread."""
    stack = [m for m in _get_current_function_mode_stack() if not type(m).__module__.startswith("stepguard.probe")]
    return {
        "function modes": stack,
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "level of forward mode": forward_ad._current_level,
        "gradients enabled": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "function overrides": torch._C._is_torch_function_enabled(),
        "attention kernels": [
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ],
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "saved tensors": torch._C._autograd._top_saved_tensors_default_hooks(False),
    }


def changed(before, after):
    """Names of what is not as before, bit for bit."""

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b

    return [name for name in before if not same(before[name], after[name])]


def hooks_of(run):
    """Hooks and modes that are somewhere on the model, on its parameters or on the optimizer."""
    modules = list(run.model.modules())
    return [
        *(h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())),
        *(h for p in run.model.parameters() for h in (p._backward_hooks or {}).values()),
        *run.optimizer._optimizer_step_pre_hooks.values(),
        *run.optimizer._optimizer_step_post_hooks.values(),
        *_get_current_function_mode_stack(),
    ]


def unguarded_step(run):
    """The parameters that the optimizer makes by itself of the gradients that are there."""
    twin = Run()
    twin.model.load_state_dict(run.model.state_dict())
    twin.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for p, q in zip(twin.model.parameters(), run.model.parameters(), strict=True):
        p.grad = q.grad.clone()
    twin.optimizer.step()
    return twin.parameters()


def place(old, new, now):
    """Where parameters are: at theta_old, theta_new, or theta_old + s * u with one s for all; else in between."""
    for name, values in (("theta_old", old), ("theta_new", new)):
        if all(map(torch.equal, values, now)):
            return name
    u, d = (torch.cat([(a - b).flatten().double() for a, b in zip(to, old, strict=True)]) for to in (new, now))
    s = float(u @ d / (u @ u))
    return "clamped" if 0 < s < 1 and (d - s * u).abs().max() < 1e-7 else "in between"
