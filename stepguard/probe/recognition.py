from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stepguard.probe.kernels import anything_compiled
from stepguard.probe.reasons import HIDDEN, OTHER_LOGITS

_FULL = 1e-3
"""How far apart the kernels of training and of measuring may be in full precision, as a share of the largest logit."""


class OtherLogitsError(ValueError):
    """Running the model again did not give what training saw."""

    def __init__(self) -> None:
        super().__init__(OTHER_LOGITS)


def same(seen: Sequence[Tensor], again: Sequence[Tensor]) -> bool:
    """Whether these are the same to the bit."""
    return len(seen) == len(again) and all(map(_same, seen, again))


def near(seen: Sequence[Tensor], measured: Sequence[Tensor]) -> bool:
    """Whether what was measured is, but for rounding, what training saw, in full precision both."""
    return _all_near(seen, measured, _FULL) and not any(s.dtype in (torch.float16, torch.bfloat16) for s in seen)


def compare(
    seen: Sequence[Tensor], again: Sequence[Tensor], measured: Sequence[Tensor] | None, exact: bool, half: bool
) -> None:
    """Compare what training saw with what running it again gave.

    Args:
        seen: Samples of what training saw.
        again: The same, run as training ran it.
        measured: The same, run as it was measured, if that is to be near.
        exact: Whether the second must equal the first to the bit; compiled code cannot be run again, and a
            GPU may add up in another order.
        half: Whether training ran in half precision, where the measurement may not.

    Raises:
        OtherLogitsError: If running it again gave something else.
        RuntimeError: If measuring did.
    """
    rounding = 1e-2 if half else 1e-5
    if not same(seen, again) and (exact and not anything_compiled() or not _all_near(seen, again, rounding)):
        raise OtherLogitsError
    if measured is not None and not _all_near(seen, measured, 0.1 if half else _FULL):
        raise RuntimeError(HIDDEN)


def _all_near(seen: Sequence[Tensor], again: Sequence[Tensor], share: float) -> bool:
    return len(seen) == len(again) and all(_near(a, b, share) for a, b in zip(seen, again, strict=True))


def _same(seen: Tensor, again: Tensor) -> bool:
    if seen.dtype != again.dtype or seen.shape != again.shape:
        return False
    return torch.equal(seen, again) or bool(torch.all((seen == again) | (seen.isnan() & again.isnan())))


def _near(seen: Tensor, again: Tensor, share: float) -> bool:
    if seen.shape != again.shape:
        return False
    finite = seen[seen.isfinite()]
    size = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(
        again.double(), seen.double(), rtol=0, atol=share * size + 1e-6 * (share > 1e-4), equal_nan=True
    )
