from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.attach import check_owned, unwrapped
from stepguard.guard.movement import Movement
from stepguard.guard.ranks import Ranks
from stepguard.guard.untouched import untouched
from stepguard.probe import Probe, SeenStep, no_modes

_SETTLED = 20
"""Steps of the optimizer on noise, after which its moments are about what they are in training."""
_SHARE = 0.3
"""Share of the target at which training is best: found on the networks of benchmarks/suggested_rate.py."""
_NOISE = 1e-3
"""Share of the gradients' length below which there is none, as where all batches are the same."""


class Suggestion(NamedTuple):
    """What :func:`suggest_lr` found out, for the parameter group whose learning rate is the largest."""

    lr: float
    """A rate to train with: three tenths of ``settled``."""
    largest: float
    """The largest that is safe for the very first steps: at it, their r is at the target."""
    settled: float
    """The same once gradients no longer all point one way."""
    factor: float
    """``lr`` over the rate that the optimizer has: that by which to multiply the rate of each group."""

    @property
    def advice(self) -> str:
        """What to do, in a sentence or two."""
        text = f"Train at a learning rate of {self.lr:.2g}."
        if self.lr > self.largest:
            text += (
                f" Its first steps are {self.lr / self.largest:.2g} times as long as is safe: "
                f"warm up from {self.largest:.2g}, or have them guarded."
            )
        return text


def suggest_lr(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor] | None = None,
    *,
    target: float = 1.0,
    most: int = 4,
) -> Suggestion:
    r"""The largest safe learning rate for this model, optimizer and batch size, and one to train with.

    A handful of batches is run forward and back, and the optimizer is given their gradients, at the parameters as they
    are. Of the update that it would make r is measured by one Jacobian-vector product; r is linear in the learning
    rate, so the largest safe one is lr * target / r (arXiv 2603.13552).

    That holds for the first steps. With Adam and its like those are all sign, whatever the size of the gradient, and
    all gradients of a fresh model point one way, so soon after them a step is a small part of that. Therefore the
    optimizer is also given what differs between the batches, with random signs, for twenty steps: its moments then are
    those of a run that has settled. r of that update is what the suggestion goes by. Where all batches are the same,
    it is that of the first.

    No trace is left: parameters, buffers, gradients, the optimizer's state, and random numbers are as they were. The
    gradients of all batches are kept meanwhile.

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
        >>> batches = [(torch.randn(8, 2), torch.randint(3, (8,))) for _ in range(4)]
        >>> found = suggest_lr(model, optimizer, batches)
        >>> 0 < found.lr < found.settled
        True
        >>> optimizer.param_groups[0]["lr"] *= found.factor
    """
    engine = model
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
    rates = [float(group.get("lr") or 0.0) for group in optimizer.param_groups]
    rates = rates if max(rates) > 0 else [1e-3] * len(rates)
    with untouched(model, optimizer):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            _set_rate(group, rate)
        now, settled = _ratios(model, optimizer, taken, loss or _cross_entropy(engine))
    largest, later = target * max(rates) / now, target * max(rates) / settled
    return Suggestion(_SHARE * later, largest, later, _SHARE * target / settled)


def _ratios(
    model: nn.Module, optimizer: Optimizer, batches: Sequence[Any], loss: Callable[[Any], Tensor]
) -> tuple[float, float]:
    """What r is of the step that the optimizer would make now, and of one when the run has settled."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    probe, kept, ranks = Probe(model, lambda: parameters), [], Ranks(model, optimizer)
    try:
        for batch in batches:
            probe.take()
            probe.resume()
            for p in model.parameters():
                p.grad = None
            loss(batch).backward()
            kept.append([p.grad for p in parameters])
        seen = probe.take()

        def ratio(gradients: Iterable[list[Tensor | None]]) -> float:
            optimizer.state = copy.deepcopy(state, {id(p): p for p in parameters})
            movement = Movement()
            movement.begin(optimizer)
            for each in gradients:
                movement.rescale(0.0)  # the parameters stay, what the optimizer has learned does too
                for p, gradient in zip(parameters, each, strict=True):
                    p.grad = gradient if gradient is None else gradient.clone()
                _step(optimizer)
            r = _of_all_ranks(ranks, lambda: _r(probe, seen, movement, ranks))
            movement.rescale(0.0)
            return r

        state = optimizer.state
        now = ratio(kept)
        # What was found out about the model holds for the same batch once more.
        probe.estimator.load_state_dict({**probe.estimator.state_dict(), "measured": 2})
        noise = _noise(kept)
        return now, ratio(_signed(noise)) if noise else now
    finally:
        probe.remove()


def _step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except TypeError as error:
        if "closure" not in str(error):
            raise
        raise ValueError(f"{type(optimizer).__name__} needs a closure, and so cannot be given gradients") from error


def _of_all_ranks(ranks: Ranks, measured: Callable[[], float]) -> float:
    """The largest r; what a rank cannot measure none has."""
    r, failure = None, None
    try:
        r = measured()
    except Exception as error:
        failure = error
    agreed = ranks.agree(r)
    if agreed is None:
        raise failure or ValueError("another rank could not measure r, and says why")
    return agreed


def _r(probe: Probe, seen: SeenStep, movement: Movement, ranks: Ranks) -> float:
    """The normalized step ratio of a movement, on the batch that was seen.

    Raises:
        ValueError: If it has none.
    """
    norms = ranks.norms(movement.end)
    if not math.isfinite(math.hypot(*norms)):
        raise ValueError("the optimizer's step is not finite, so there is nothing to measure")
    each = zip(movement.params, movement.old, movement.update, norms, strict=True)
    moves = [(p, old, u) for p, old, u, norm in each if norm > 0]
    with no_modes():
        spreads = probe.spreads(seen, moves) if moves else torch.zeros(0)
    if not spreads.numel() or not float(spreads.max()) > 0:
        raise ValueError("no logit moves with the optimizer's step, whatever the learning rate")
    return float(spreads.max()) / math.pi


def _noise(kept: list[list[Tensor | None]]) -> list[list[Tensor | None]]:
    """By how much the gradient of each batch differs from their mean, as long as between two batches; empty if not."""
    if len(kept) < 2:
        return []
    stretch = math.sqrt(len(kept) / (len(kept) - 1))
    noise: list[list[Tensor | None]] = [[] for _ in kept]
    whole = part = 0.0
    for each in zip(*kept, strict=True):
        there = [g for g in each if g is not None]
        mean = sum(there) / len(kept) if there else None
        for found, gradient in zip(noise, each, strict=True):
            differs = None if mean is None else stretch * ((0.0 if gradient is None else gradient) - mean)
            found.append(differs)
            if differs is not None and mean is not None:
                part += float(differs.norm()) ** 2
                whole += float(mean.norm()) ** 2
    return noise if part > _NOISE**2 * whole else []


def _signed(noise: list[list[Tensor | None]]) -> Iterator[list[Tensor | None]]:
    dice = random.Random(0)
    for index in range(_SETTLED):
        sign = dice.choice((-1, 1))
        yield [g if g is None else sign * g for g in noise[index % len(noise)]]


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group.get("lr"), Tensor):
        group["lr"].fill_(rate)
    elif group.get("lr") is not None:
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
