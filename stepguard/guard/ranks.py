from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed

from stepguard.probe.summary import Summary, merged


def agree(r: float | None, device: torch.device) -> float | None:
    """One r for all ranks: the largest anywhere, None if any rank could not measure.

    A collective wherever torch.distributed runs more than one process: every rank calls it once a
    step, whatever happened there.
    """
    if not _several():
        return r
    # MAX is not defined for nan, and a nan anywhere must count as unsafe everywhere.
    value = math.inf if r is None or math.isnan(r) else r
    message = torch.tensor([value, float(r is None)], dtype=torch.float32, device=device)
    distributed.all_reduce(message, op=distributed.ReduceOp.MAX)
    largest, missing = message.tolist()
    if missing:
        return None
    # A rank's own number keeps its float64 digits only where it stands alone.
    return float(largest)


def agree_on_any(here: bool, device: torch.device) -> bool:
    """Whether it is so on any rank; a collective as :func:`agree` is."""
    return agree(float(here), device) == 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def together(mine: Summary | None, every: int) -> tuple[Summary | None, int]:
    """One summary of the samples of all ranks, and the largest of their cadences.

    A collective, as :func:`agree` is: every rank calls it at the same steps, whatever happened there.
    """
    if not _several():
        return mine, every
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, (mine, every))
    return merged([summary for summary, _ in found if summary is not None]), max(every for _, every in found)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
