from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stepguard.probe import check_sharding, copies, is_sharded
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


def largest(numbers: Sequence[float], device: torch.device) -> list[float]:
    """Of each number the largest anywhere; a collective as :func:`agree` is. None of them may be nan."""
    if not _several():
        return list(numbers)
    message = torch.tensor(numbers, dtype=torch.float32, device=device)
    distributed.all_reduce(message, op=distributed.ReduceOp.MAX)
    found: list[float] = message.tolist()
    return found


def whole_norms(parts: Sequence[float] | None, parameters: Sequence[Tensor], device: torch.device) -> list[float]:
    """Norms of tensors, from those of the parts that each rank has; a collective as :func:`agree` is.

    Args:
        parts: Of what this rank has; None if that could not be found out, and then no rank learns of any.
        parameters: What they are of; of those that are not sharded each rank has all.
        device: Where ranks talk to each other.
    """
    ranks = distributed.get_world_size()
    squares = [math.nan] * len(parameters)
    if parts is not None:
        squares = [part * part / copies(p, ranks) for part, p in zip(parts, parameters, strict=True)]
    message = torch.tensor(squares, dtype=torch.float64, device=device)
    distributed.all_reduce(message)
    return [math.sqrt(square) for square in message.tolist()]


def check_ranks(model: nn.Module) -> bool:
    """Whether parameters are sharded over ranks.

    Raises:
        ValueError: If they are in a way that cannot be measured.
    """
    check_sharding(model, distributed.get_world_size() if _several() else 1)
    return any(is_sharded(p) for p in model.parameters())


def check_joined(engine: nn.Module) -> None:
    """Refuse a step in which ranks may be missing.

    Raises:
        ValueError: Inside ``DistributedDataParallel.join``.
    """
    config = getattr(engine, "_join_config", None)
    if config and config.enable and _several():
        raise ValueError(
            "Inside DistributedDataParallel.join, ranks that have no more batches take no part in what the others "
            "agree on. Give all ranks as many batches instead, as DistributedSampler does"
        )


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
