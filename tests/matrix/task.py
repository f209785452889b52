"""What a case of the matrix is made of, how it is run under a guard, and the float64 reference of its r.

Nothing here is shared with the code under test: the reference differentiates, in float64 and by a central
difference of 1e-6 of the step, the logits that the case itself names.
"""

import contextlib
import copy
import math
import random
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

import stepguard
from stepguard.records import Memory

SEED = 3


class Task(NamedTuple):
    """A model and the user's own code around it."""

    model: nn.Module
    """What the user attaches to."""
    loss: Callable[[], Tensor]
    """The user's training step up to the loss, calling the model as the user does. It may draw random numbers."""
    logits: Callable[[nn.Module], Sequence[Tensor]]
    """For the reference only: from a float64 copy of the model to the logits of every softmax in the loss, classes
    last, without the samples that the loss ignores; a binary logit z as ``binary(z)``."""
    plain: nn.Module | None = None
    """The module that the reference copies, where `model` itself cannot be copied (compiled, scripted)."""
    autocast: torch.dtype | None = None
    """The dtype of a CPU autocast around `loss`."""
    options: dict[str, Any] = {}
    """More arguments of attach, where the case is about them."""


class Case(NamedTuple):
    """A row of the matrix."""

    name: str
    build: Callable[[], Task]
    estimator: str = "forward"
    """`forward` or `difference`; the one that must be in use."""
    tolerance: float = 1e-4
    """Relative error of r that is allowed: 1e-4 for forward mode in float32, 0.05 for differences and bf16."""
    refused: str = ""
    """A regular expression that the reason must match, where r cannot be measured and must not be."""
    note: str = ""
    """One line for the table in the docs."""


class Measured(NamedTuple):
    r: float
    reference: float
    estimator: str
    unmeasured: str
    """The guard's reason, where it did not measure."""


def binary(z: Tensor) -> Tensor:
    """A binary decision as a softmax over (0, z)."""
    return torch.stack((torch.zeros_like(z), z), -1)


def like(x: Tensor, model: nn.Module) -> Tensor:
    """A floating input in the dtype of the model's first floating parameter."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return x.to(dtype) if x.is_floating_point() else x


def around(task: Task) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", task.autocast) if task.autocast else contextlib.nullcontext()


def sgd(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def run(case: Case, steps: int = 3, lr: float = 0.05) -> list[Measured]:
    """Some steps of training under an observing guard, each beside its reference."""
    torch.manual_seed(SEED)
    task = case.build()
    plain = task.plain or task.model
    optimizer, memory, found = sgd(task.model, lr), Memory(), []
    with stepguard.attach(task.model, optimizer, action="observe", recorders=[memory], **task.options):
        for step in range(steps):
            before = copy.deepcopy(plain)
            optimizer.zero_grad()
            torch.manual_seed(SEED + step)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with around(task):
                    loss = task.loss()
                loss.backward()
                optimizer.step()
                after = dict(plain.named_parameters())
                update = {n: after[n].detach().double() - p.detach().double() for n, p in before.named_parameters()}
                torch.manual_seed(SEED + step)
                reference = math.nan if case.refused else reference_r(task, before, update)
            readings, _, events = memory.drain()
            unmeasured = " ".join(e.message for e in events if e.kind == "unmeasured")
            r, estimator = (readings[0].r, readings[0].estimator) if readings else (math.nan, "")
            found.append(Measured(r, reference, estimator, unmeasured))
    return found


def reference_r(task: Task, before: nn.Module, update: dict[str, Tensor], size: float = 1e-6) -> float:
    """Largest spread of the slopes over pi, by a central difference in float64 from the state before the step."""
    state, sides = torch.get_rng_state(), []
    for sign in (1, -1):
        twin = copy.deepcopy(before).double()
        for name, p in twin.named_parameters():
            p.data = p.data + sign * size * update[name]
        torch.set_rng_state(state)
        with torch.no_grad():
            sides.append([z.detach().double() for z in task.logits(twin)])
    slopes = [(plus - minus) / (2 * size) for plus, minus in zip(*sides, strict=True)]
    return max(float((a.amax(-1) - a.amin(-1)).max()) for a in slopes) / math.pi


def trail(case: Case, guarded: bool, steps: int = 3, lr: float = 0.05) -> list[Any]:
    """Everything that a user could see of some steps of training, with an observing guard or without."""
    torch.manual_seed(SEED)
    random.seed(SEED)
    numpy.random.seed(SEED)
    task = case.build()
    optimizer, fired, seen = sgd(task.model, lr), {"times": 0}, []

    def count(*_: Any) -> None:
        fired["times"] += 1

    hooks = [m.register_forward_hook(count) for m in task.model.modules()] if task.plain is None else []
    guard = stepguard.attach(task.model, optimizer, action="observe", **task.options) if guarded else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            optimizer.zero_grad()
            with around(task):
                loss = task.loss()
            loss.backward()
            optimizer.step()
            modules = list(task.model.modules())
            seen += [
                loss,
                [(p, p.grad, p.requires_grad) for p in task.model.parameters()],
                list(task.model.buffers()),
                [v for state in optimizer.state.values() for v in state.values()],
                [(type(m).__name__, m.training, *_plain(m)) for m in modules],
                (torch.get_rng_state(), random.getstate(), [*numpy.random.get_state()]),
                (fired["times"], torch.is_grad_enabled(), torch.get_default_dtype(), threading.active_count()),
            ]
            seen = copy.deepcopy([_detached(s) for s in seen])
    if guard:
        guard.detach()
    for hook in hooks:
        hook.remove()
    return [*seen, [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in task.model.modules()]]


def same(one: Any, other: Any) -> bool:
    """Whether two trails agree to the last bit."""
    if isinstance(one, Tensor):
        equal = one == other
        return one.shape == other.shape and bool((equal | (one != one) & (other != other)).all())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, numpy.ndarray):
        return bool((one == other).all())
    return bool(one == other)


def _plain(module: nn.Module) -> list[Any]:
    """What a module remembers in attributes of its own, where two runs can be compared."""
    kinds = (Tensor, bool, int, float, str, list, tuple)
    found = {k: v for k, v in sorted(vars(module).items()) if not k.startswith("_") and isinstance(v, kinds)}
    return [
        (k, v) for k, v in found.items() if not isinstance(v, (list, tuple)) or all(isinstance(i, kinds) for i in v)
    ]


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to_dense() if value.is_sparse else value.detach()
    if isinstance(value, (list, tuple)):
        return [_detached(v) for v in value]
    return value
