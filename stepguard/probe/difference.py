from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from stepguard.geometry import slope_spread
from stepguard.probe.logits import largest_finite
from stepguard.probe.slopes import Forward

# Perturbations are sized to move the logits of the most sensitive sample by this r, within a factor of four: below,
# float32 rounding of the logits shows; above, the curvature of the network does.
AIM = 4e-3


def logits_and_differences(
    forward: Forward, params: Mapping[str, Tensor], update: Mapping[str, Tensor], class_dim: int = -1, aim: float = AIM
) -> tuple[Tensor, Tensor]:
    """Logits, and their slopes along the update by a central difference: for what forward mode cannot run.

    Four to six forward passes. It sees what the network really computes, whatever autograd believes of it.

    Args:
        forward: As for :func:`stepguard.logit_slopes`; it must give the same logits for the same parameters.
        params: The parameters at which to differentiate, float32 or float64.
        update: Proposed change of the parameters.
        class_dim: Dimension of the logits that holds the classes.
        aim: The r of the perturbation.

    Raises:
        TypeError: If a parameter is of half precision, in which the perturbation would be lost.

    Example:
        >>> w = torch.tensor([[1.0, 2.0]])
        >>> z, a = logits_and_differences(lambda p: p["w"] ** 2, {"w": w}, {"w": torch.tensor([[1.0, 1.0]])})
        >>> a.round(decimals=3)
        tensor([[2., 4.]])
    """
    for name, value in params.items():
        if name in update and value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"a finite difference needs float32 parameters, {name} is {value.dtype}")

    @torch.no_grad()
    def at(scale: float) -> Tensor:
        return forward({n: p + scale * update[n] if n in update else p for n, p in params.items()})

    def r(change: Tensor) -> float:
        return float(slope_spread(change.movedim(class_dim, -1)).max()) / math.pi

    logits = at(0.0)
    aim = max(aim, resolution(logits))
    # A power of two, so that scaling by it rounds nothing.
    size = 2.0**-10
    for _ in range(3):
        seen = r(_change(at(size), logits))
        if not math.isfinite(seen) or seen > 4 * aim or 0 < seen < aim / 4:
            # What is beyond is not linear there and its size says little: come closer step by step.
            factor = aim / seen if math.isfinite(seen) and seen > 0 else 2.0**-20
            size *= 2.0 ** round(math.log2(min(max(factor, 2.0**-20), 2.0**20)))
        else:
            break
    return logits, _change(at(size), at(-size)) / (2 * size)


def resolution(logits: Tensor) -> float:
    """The r of the smallest perturbation that stands out from the rounding of these logits a hundredfold."""
    return 100 * largest_finite(logits) * torch.finfo(logits.dtype).eps / math.pi


def _change(after: Tensor, before: Tensor) -> Tensor:
    # A class masked out with -inf stays where it is; the subtraction would say nan.
    return torch.where(after == before, 0.0, after - before)
