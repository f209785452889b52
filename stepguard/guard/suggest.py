from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.attach import check_owned, unwrapped
from stepguard.guard.movement import Movement
from stepguard.probe import Probe, no_modes
from stepguard.probe.random_state import device_of, random_state, set_random_state
from stepguard.probe.traces import no_traces

_MEASURED = 3
"""Of how many batches, the last ones, the slopes are taken."""
_AIM = 0.3
"""The r at which that is done: the update then stands out from the rounding of the parameters."""
_SHARE = 0.5
"""Of the largest safe learning rate, what is recommended."""


class Suggestion(NamedTuple):
    """What :func:`suggest_lr` found out, for the parameter group whose learning rate is the largest."""

    lr: float
    """A rate to train with."""
    largest: float
    """The largest that is safe now: at it, r is at the target."""
    factor: float
    """``lr`` over the rate that the optimizer has; that by which to multiply the rate of each group."""
    r: list[float]
    """Normalized step ratio, at ``largest``, of each batch that was measured."""
    taken_at: float
    """The optimizer's own rate."""


def suggest_lr(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor] | None = None,
    *,
    target: float = 1.0,
    most: int = 5,
) -> Suggestion:
    r"""The largest safe learning rate for this model, optimizer and batch size, and one to train with.

    A handful of batches is run forward and back, and the optimizer takes its step on each of them; that step is
    undone every time, but not what the optimizer learned, so that at the last batches its moments are about what they
    are in training. It matters for Adam and its like, whose very first update is all sign, whatever the gradient,
    and for momentum, which has yet to grow. Of the last three the slopes along the update are taken, one
    Jacobian-vector product each, and r is linear in the learning rate: the largest safe one is lr * target / r
    (arXiv 2603.13552).

    No trace is left: parameters, buffers, gradients, the optimizer's state, and random numbers are as they were.

    Args:
        model: The module that is to be trained.
        optimizer: Its optimizer, with the options that it will have; a learning rate of 0 is taken for 1e-3.
        batches: What to run it on, as training will be given it; a DataLoader will do.
        loss: Function from a batch to its loss; None is the cross-entropy of ``model(x)`` with y for a pair (x, y).
        target: Limit on r that the largest rate keeps to.
        most: At most so many batches are taken.

    Returns:
        The suggestion; nothing is set.

    Raises:
        ValueError: If there are no batches, the optimizer is guarded already, or r cannot be measured; saying why.
        TypeError: If ``model`` is not a module or ``optimizer`` not a torch optimizer.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> found = suggest_lr(model, optimizer, [(torch.eye(2), torch.tensor([0, 1]))] * 5)
        >>> 0 < found.lr < found.largest
        True
        >>> optimizer.param_groups[0]["lr"] *= found.factor
    """
    model, optimizer = unwrapped(model, optimizer)
    check_owned(model, optimizer)
    if any(_is_ours(hook) for hook in optimizer._optimizer_step_pre_hooks.values()):
        raise ValueError("this optimizer is guarded already; call suggest_lr before attach, or detach the guard")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a positive number of batches, got {most!r}")
    if not 0 < target < math.inf:
        raise ValueError(f"target must be a positive, finite number, got {target!r}")
    taken = [batch for _, batch in zip(range(most), batches, strict=False)]
    if not taken:
        raise ValueError("there are no batches to measure on")
    asked = [float(group.get("lr") or 0.0) for group in optimizer.param_groups]
    with _untouched(model, optimizer):
        found = [r / lr for r, lr in _trials(model, optimizer, taken, loss or _cross_entropy(model), asked)]
    if not max(found) > 0:
        raise ValueError("no logit moves with any of these steps, whatever the learning rate")
    largest = target / max(found)
    if not max(asked):
        asked = [1e-3]
    return Suggestion(
        _SHARE * largest, largest, _SHARE * largest / max(asked), [largest * each for each in found], max(asked)
    )


def _trials(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    loss: Callable[[Any], Tensor],
    asked: list[float],
) -> Iterator[tuple[float, float]]:
    """r, and the largest learning rate that it was measured at, of the last batches."""
    groups = optimizer.param_groups
    parameters = [p for group in groups for p in group["params"]]
    movement = Movement()
    rates = asked if max(asked) else [1e-3] * len(groups)
    factor = 1.0
    for index, batch in enumerate(batches):
        measured = index >= len(batches) - _MEASURED
        for group, rate in zip(groups, rates, strict=True):
            _set(group, rate * factor)
        optimizer.zero_grad()
        probe = Probe(model, lambda: parameters) if measured else None
        try:
            value = loss(batch)
            value.backward()
            movement.begin(optimizer)
            seen = probe.take() if probe else None
            optimizer.step()
            norms = movement.end()
            tau = math.hypot(*norms)
            if not math.isfinite(tau):
                raise ValueError("the optimizer's step is not finite, so there is nothing to measure")
            if probe and seen:
                each = zip(movement.params, movement.old, movement.update, norms, strict=True)
                moves = [(p, old, u) for p, old, u, norm in each if norm > 0]
                with no_modes():
                    spreads = probe.spreads(seen, moves) if moves else torch.zeros(1)
                r = float(spreads.max()) / math.pi if spreads.numel() else 0.0
                yield r, max(rates) * factor
                if r > 0:
                    factor *= _AIM / r
        finally:
            if probe:
                probe.remove()
        movement.rescale(0.0)


@contextmanager
def _untouched(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Leave everything as it was found."""
    device = device_of(model)
    found = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    gradients = [(p, p.grad) for p in model.parameters()]
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    found += [(value, value.clone()) for group in groups for value in group.values() if isinstance(value, Tensor)]
    own = dict(vars(optimizer))
    drawn = random_state(device)
    parameters = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    with ExitStack() as stack:
        stack.enter_context(no_traces(model))
        try:
            # A scheduler counts steps, a guard of another kind looks at them; these are none.
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
            optimizer.state = copy.deepcopy(optimizer.state, dict(parameters))
            for p, _ in gradients:
                p.grad = None
            yield
        finally:
            vars(optimizer).clear()
            vars(optimizer).update(own)
            for group, kept in zip(optimizer.param_groups, groups, strict=True):
                group.update(kept)
            for p, gradient in gradients:
                p.grad = gradient
            with torch.no_grad():
                for tensor, value in found:
                    tensor.copy_(value)
            set_random_state(drawn, device)


def _set(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _cross_entropy(model: nn.Module) -> Callable[[Any], Tensor]:
    def loss(batch: Any) -> Tensor:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"pass loss=, a function from a batch to its loss: a {type(batch).__name__} is not (x, y)")
        x, y = batch
        z = model(x)
        return F.cross_entropy(z.flatten(0, -2), y.flatten())

    return loss


def _is_ours(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("stepguard.guard")
