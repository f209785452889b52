from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stepguard.probe.estimator import SlopeEstimator
from stepguard.probe.rerun import Learned, Manner, Rerun, Result, Target, described, order_of
from stepguard.probe.sample import Sample
from stepguard.probe.values import Move, Values
from stepguard.probe.whole import Whole


class Explanation(NamedTuple):
    """Where the spread of one sample comes from."""

    sample: Sample
    softmax: str
    """What its softmax is, in words."""
    batch: int
    """Which of the step's micro-batches it is in, in the order in which they were run."""
    batches: int
    parts: list[tuple[Tensor, float]]
    """Parameters, and what the update of each adds to the spread."""


def explained(
    model: nn.Module,
    found: Sequence[list[Target]],
    place: tuple[int, int, int],
    moves: Sequence[Move],
    estimator: SlopeEstimator,
    how: Manner,
    learned: Learned,
) -> Explanation:
    r"""Where the spread of a sample comes from: one pass for its two classes, then one forward and one backward.

    Slopes are linear in the update, so what parameter p adds to the spread of the classes k+ and k- is
    :math:`\langle \nabla_p (z_{k+} - z_{k-}), u_p \rangle`, and one backward pass has that of all of them.

    Args:
        model: The attached module.
        found: What has logits, batch by batch.
        place: The sample: of which batch, of which softmax, and which of those that count.
        moves: What the optimizer did.
        estimator: How the slopes were taken.
        how: What the user chose about running it again.
        learned: What is known of the model.
    """
    whole = Whole(model, moves)
    reruns = [Rerun(model, targets, whole, how, learned) for targets in found]
    batch, softmax, counted = place
    rerun = reruns[batch]
    sample = estimator.sample(rerun, softmax, counted)

    def read(result: Result, values: Values) -> tuple[list[float], str]:
        return _parts(result, sample, values, moves), _described(result.sources, softmax)

    parts, words = rerun.with_graph(whole, read)
    before = sum(other.order < rerun.order for other in reruns)
    return Explanation(
        sample, words, before, len(reruns), [(p, part) for (p, _, _), part in zip(moves, parts, strict=True)]
    )


def _described(sources: list[Target], softmax: int) -> str:
    """What a softmax is; of several, as the how manieth it was taken."""
    words, among = described(sources[softmax]), len(sources)
    as_taken = sorted(range(among), key=lambda i: order_of(sources[i]))
    return f"{words}, {as_taken.index(softmax) + 1} of {among}" if among > 1 else words


def _parts(result: Result, sample: Sample, values: Values, moves: Sequence[Move]) -> list[float]:
    softmax = result.softmaxes[sample.softmax]
    z = softmax.logits.movedim(softmax.class_dim, -1)
    if tuple(z.shape[:-1]) != sample.shape:
        raise RuntimeError(f"samples were {sample.shape} and are {tuple(z.shape[:-1])} with a graph")
    apart = z[sample.position][sample.rising] - z[sample.position][sample.falling]
    if not apart.requires_grad:  # autograd knows of no way from the parameters to here
        return [0.0] * len(moves)
    gradients = torch.autograd.grad(apart, [values.by_parameter[p] for p, _, _ in moves], allow_unused=True)
    with torch.no_grad():
        products = [_product(g, u).to(apart.device) for g, (_, _, u) in zip(gradients, moves, strict=True)]
        found: list[float] = torch.stack(products).tolist()
    return found


def _product(gradient: Tensor | None, update: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros((), dtype=torch.float64)
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return (dense * update).sum(dtype=torch.float64)  # contributions may be large and cancel each other
