from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, distributed

from stepguard.probe.sharding import Layout, Unit, part_here

_DONE, _FAILED = -1, -2
Parts = dict[Tensor, tuple[Tensor, Tensor | None]]
"""For each parameter this rank's part of what it was before the step, and of its update if it has one."""


class OtherRankError(RuntimeError):
    """Another rank could not measure, so this one cannot either."""

    def __init__(self) -> None:
        super().__init__("Another rank could not measure, and parameters are sharded over all of them")


class Lending:
    """Whole parameters for ranks that hold shards of them, for as long as one measurement takes.

    Each rank runs its own forwards, as many as it needs, and asks for a unit when it comes to it. Before anything is
    sent all say what they want next, so that none waits for one that will not come: a rank without a batch lends its
    shards all the same, and when one fails, all hear of it at the same time. For each unit that is a word from every
    rank, and then one all-gather.

    Args:
        units: Those of the model, in the same order on all ranks.
        parts: What this rank has.
    """

    def __init__(self, units: Sequence[Unit], parts: Parts):
        self._units = list(units)
        self._parts = parts
        self._over = False
        self._device = next(iter(parts.values()))[0].device
        self._lent = self._whole = torch.empty(0)

    def open(self) -> None:
        """Take the memory that it needs, while a rank that has none can still say so."""
        sizes = [(self._size(unit), self._layout(unit).ranks) for unit in self._units if unit.slots]
        dtype = reduce(torch.promote_types, [old.dtype for old, _ in self._parts.values()])
        self._lent = torch.empty(max(size for size, _ in sizes), dtype=dtype, device=self._device)
        most = max(size * ranks for size, ranks in sizes)
        self._whole = torch.empty(most, dtype=dtype, device=self._device)

    def whole(self, unit: Unit) -> Parts:
        """The parameters of a unit and their updates, whole; every rank is in here or in :meth:`close`.

        Raises:
            OtherRankError: If there will be no answer.
        """
        found = self._round(self._units.index(unit)) if unit.slots else {}
        if found is None:
            raise OtherRankError
        return found

    def close(self, failed: bool) -> None:
        """Lend to the others until all are done.

        Raises:
            OtherRankError: If one of them failed.
        """
        word = _FAILED if failed else _DONE
        while not self._over:
            if self._round(word) is None and not failed:
                raise OtherRankError

    def _round(self, word: int) -> Parts | None:
        """All say what they want and get it; None if one has failed."""
        words = self._said(word)
        self._over = _FAILED in words or set(words) == {_DONE}
        if _FAILED in words:
            return None
        found: Parts = {}
        for wanted in sorted(set(words) - {_DONE}):
            self._gather(self._units[wanted])
            if wanted == word:
                found = self._assembled(self._units[wanted])
        return found

    def _said(self, word: int) -> list[int]:
        said = torch.empty(distributed.get_world_size(), dtype=torch.int64, device=self._device)
        _all_gather(said, torch.full((1,), word, dtype=torch.int64, device=self._device))
        words: list[int] = said.tolist()
        return words

    def _gather(self, unit: Unit) -> None:
        layout, size, at = self._layout(unit), self._size(unit), 0
        for p in unit.slots:
            for part in self._parts[p]:
                if part is not None:
                    self._lent[at : at + part.numel()].view(part.shape).copy_(part)
                    at += self._padded(p)
        _all_gather(self._whole[: layout.ranks * size], self._lent[:size], layout.group)

    def _assembled(self, unit: Unit) -> Parts:
        size, at = self._size(unit), 0
        by_rank = self._whole[: self._layout(unit).ranks * size].view(-1, size)
        found: Parts = {}
        for p in unit.slots:
            both: list[Tensor] = []
            for part in self._parts[p]:
                if part is not None:
                    layout = Layout.of(p)
                    shapes = [layout.shape(p.shape, rank) for rank in range(layout.ranks)]
                    pieces = [row[at : at + math.prod(s)].view(s) for row, s in zip(by_rank, shapes, strict=True)]
                    both.append(torch.cat(pieces, layout.dim).to(part.dtype))
                    at += self._padded(p)
            found[p] = both[0], both[1] if len(both) > 1 else None
        return found

    def _layout(self, unit: Unit) -> Layout:
        return Layout.of(next(iter(unit.slots)))

    def _size(self, unit: Unit) -> int:
        return sum(self._padded(p) * sum(part is not None for part in self._parts[p]) for p in unit.slots)

    def _padded(self, parameter: Tensor) -> int:
        return math.prod(Layout.of(parameter).shape(parameter.shape, rank=0))


def _all_gather(into: Tensor, part: Tensor, group: Any = None) -> None:
    # It got another name, and the old one warns.
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
    gather(into, part, group=group)


@contextmanager
def lending(units: Sequence[Unit], moves: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Iterator[Lending]:
    """Lend and borrow inside; every rank must come here, whatever it has to measure.

    Args:
        units: Of the model.
        moves: The same parameters on all ranks, with this rank's part of what they were, and of their updates.
    """
    with torch.no_grad():
        parts: Parts = {p: (part_here(p.detach()), None) for unit in units for p in unit.slots}
    parts |= {p: (old, u) for p, old, u in moves if p in parts}
    lend = Lending(units, parts)
    try:
        lend.open()
        yield lend
    except BaseException:
        lend.close(failed=True)
        raise
    lend.close(failed=False)
