from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from stepguard.guard.gradients import Checked, check_gradients
from stepguard.probe import check_sharding, copies, is_sharded
from stepguard.probe.summary import Summary, merged


class Ranks:
    """What the processes that train a model agree on; one alone is of its own opinion.

    What asks the others is a collective: every rank calls it at the same steps, whatever happened there.

    Args:
        model: What is trained.
        optimizer: By which; its parameters tell where ranks talk to each other.
        engine: What the training code calls, where that is another module around the model.

    Raises:
        ValueError: If parameters are sharded in a way that cannot be measured.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, engine: nn.Module | None = None):
        check_sharding(model, distributed.get_world_size() if _several() else 1)
        self._optimizer, self._engine = optimizer, model if engine is None else engine
        self._sharded = any(is_sharded(p) for p in model.parameters())

    def check(self) -> None:
        """Refuse a step in which some may be missing.

        Raises:
            ValueError: Inside ``DistributedDataParallel.join``.
        """
        config = getattr(self._engine, "_join_config", None)
        if config and config.enable and _several():
            raise ValueError(
                "Inside DistributedDataParallel.join, ranks that have no more batches take no part in what the others "
                "agree on. Give all ranks as many batches instead, as DistributedSampler does"
            )

    def agree(self, r: float | None) -> float | None:
        """One r for all ranks: the largest anywhere, None if any rank could not measure."""
        if not _several():
            return r
        # MAX is not defined for nan, and a nan anywhere must count as unsafe everywhere.
        value = math.inf if r is None or math.isnan(r) else r
        found, missing = self.largest([value, r is None])
        # A rank's own number keeps its float64 digits only where it stands alone.
        return None if missing else found

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Of each number the largest anywhere; none of them may be nan."""
        if not _several():
            return list(numbers)
        message = torch.tensor(numbers, dtype=torch.float32, device=self._parameters[0].device)
        distributed.all_reduce(message, op=distributed.ReduceOp.MAX)
        found: list[float] = message.tolist()
        return found

    def check_gradients(self) -> Checked:
        """A look at all gradients; at sharded ones on all ranks, while whole ones are the same everywhere."""
        found, failure = Checked(False, None), None
        try:
            found = check_gradients(self._optimizer, self._share)
        except Exception as error:
            failure = error
        if self._sharded:
            with suppress(Exception):  # nobody to agree with any more
                square = math.nan if found.norm is None else found.norm * found.norm
                message = torch.tensor(
                    [not found.sound, square], dtype=torch.float64, device=self._parameters[0].device
                )
                distributed.all_reduce(message)
                unsound, square = message.tolist()
                found = Checked(unsound == 0, None if math.isnan(square) else math.sqrt(square))
        if failure:
            raise failure
        return found

    def norm_here(self, norms: Callable[[], float | None]) -> float | None:
        """A norm that no rank needs the others for; None where tensors are sharded, or it cannot be had."""
        with suppress(Exception):
            return None if self._sharded else norms()
        return None

    def norms(self, parts: Callable[[], list[float]] | None) -> list[float]:
        """Norms of whole tensors.

        Args:
            parts: Gives those of the parts that this rank has, of what the optimizer moves; None if it cannot.

        Raises:
            Exception: What ``parts`` raises, here; elsewhere all norms are nan then.
        """
        found, failure = None, None
        try:
            found = parts() if parts else None
        except Exception as error:
            failure = error
        if self._sharded:
            parameters, ranks = self._parameters, distributed.get_world_size()
            squares = [math.nan] * len(parameters)
            if found is not None:
                squares = [part * part / copies(p, ranks) for part, p in zip(found, parameters, strict=True)]
            message = torch.tensor(squares, dtype=torch.float64, device=parameters[0].device)
            distributed.all_reduce(message)
            found = [math.sqrt(square) for square in message.tolist()]
        if failure:
            raise failure
        return found or []

    def _share(self, parameter: Tensor) -> float:
        return 1 / copies(parameter, distributed.get_world_size()) if self._sharded else 1.0

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def rank() -> int | None:
    """The number of this process, where several train."""
    return distributed.get_rank() if _several() else None


def together(mine: Summary | None, every: int) -> tuple[Summary | None, int]:
    """One summary of the samples of all ranks, and the largest of their cadences.

    A collective: every rank calls it at the same steps, whatever happened there.
    """
    if not _several():
        return mine, every
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, (mine, every))
    return merged([summary for summary, _ in found if summary is not None]), max(every for _, every in found)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
