from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stepguard.probe.softmax import Softmax

# Perturbations are sized to move the logits of the most sensitive sample by this r, within a factor of four: below,
# float32 rounding of the logits shows; above, the curvature of the network does.
AIM = 4e-3
_LONGEST_UNSEEN = 2.0**10
"""Times an update that moves no logit and still may be too short to."""


def spreads_by_difference(
    at: Callable[[float], Sequence[Softmax]], logits: Sequence[Softmax], aim: float = AIM
) -> list[Tensor]:
    """Spread of the slopes of every softmax along an update, by a central difference: for what has no forward mode.

    Three to five forward passes. It sees what the network really computes, whatever autograd believes of it.

    Args:
        at: From a factor on the update to the softmaxes of the model moved by it, the same for the same factor.
        logits: Those at 0.
        aim: The r of the perturbation.

    Example:
        >>> w, u = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
        >>> at = lambda scale: [Softmax((w + scale * u) ** 2)]
        >>> [spread.round(decimals=3) for spread in spreads_by_difference(at, at(0))]
        [tensor([2.])]
    """
    size = size_of_difference(at, logits, aim)
    return [spread / (2 * size) for spread in _spreads(at(size), at(-size))]


def size_of_difference(at: Callable[[float], Sequence[Softmax]], logits: Sequence[Softmax], aim: float = AIM) -> float:
    """The factor on the update by which a difference has both digits and little curvature."""
    floor = resolution(logits)
    aim = max(aim, floor)
    # A power of two, so that scaling by it rounds nothing.
    size = 2.0**-10
    for _ in range(4):
        seen = largest_r(_spreads(at(size), logits))
        if seen == 0 and size < _LONGEST_UNSEEN:
            size *= 2.0**10  # so short a part of it rounds to nothing in the parameters or in the logits
        elif not math.isfinite(seen) or seen > 4 * aim or 0 < seen < aim / 4:
            # What is beyond is not linear there and its size says little: come closer step by step.
            factor = aim / seen if math.isfinite(seen) and seen > 0 else 2.0**-20
            wanted = size * 2.0 ** round(math.log2(min(max(factor, 2.0**-20), 2.0**20)))
            # Longer than the step itself only where that does not stand out.
            longest = 1.0 if seen / size >= floor else math.inf
            if min(wanted, longest) == size:
                break
            size = min(wanted, longest)
        else:
            break
    return size


def spreads_by_secant(
    beside: Callable[[float], list[tuple[Softmax, Softmax]] | None], expected: float
) -> list[Tensor] | None:
    """The same by a one-sided difference from logits that are there already: one forward pass, right to a few percent.

    Args:
        beside: From a factor on the update to the softmaxes at 0 and of the model moved by it.
        expected: About what r is.

    Returns:
        None if it is not to be relied on: r is far from what was expected, or the logits have too few digits.

    Example:
        >>> w, u = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
        >>> beside = lambda scale: [(Softmax(w**2), Softmax((w + scale * u) ** 2))]
        >>> [spread.round(decimals=2) for spread in spreads_by_secant(beside, expected=0.6)]
        [tensor([2.])]
    """
    if not 0 < expected < math.inf:
        return None
    size = min(2.0 ** round(math.log2(AIM / expected)), 1.0)
    found = beside(size)
    if found is None:
        return None
    before, after = zip(*found, strict=True)
    spreads = _spreads(after, before)
    seen = largest_r(spreads)
    rounding = max(float(b.logits.abs().max()) * torch.finfo(b.logits.dtype).eps for b in before) / math.pi
    if not (AIM / 8 < seen < 8 * AIM and seen > 100 * rounding):
        return None
    return [spread / size for spread in spreads]


def resolution(softmaxes: Sequence[Softmax]) -> float:
    """The r of the smallest perturbation that stands out from the rounding of these logits a hundredfold."""
    eps = [100 * _largest_finite(s) * torch.finfo(s.logits.dtype).eps / math.pi for s in softmaxes]
    return max(eps, default=0.0)


def largest_r(spreads: Sequence[Tensor]) -> float:
    """The r of the most sensitive sample; not a number if any is not."""
    found = [s.max() for s in spreads if s.numel()]
    return float(torch.stack([f.double() for f in found]).max()) / math.pi if found else 0.0


def _spreads(after: Sequence[Softmax], before: Sequence[Softmax]) -> list[Tensor]:
    return [b.spread(map(with_change, b.pieces(), a.pieces())) for a, b in zip(after, before, strict=True)]


def with_change(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and by how much they differ from others."""
    # A logit that is infinite and stays so; the subtraction would say nan.
    return before, torch.where(after == before, 0.0, after - before)


def _largest_finite(softmax: Softmax) -> float:
    """Largest absolute logit, classes masked out with infinities aside; 0 where there is none."""
    pieces = [z[z.isfinite()] for z in softmax._replace(columns=None).pieces()]  # values only
    return max((float(z.abs().max()) for z in pieces if z.numel()), default=0.0)
