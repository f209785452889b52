from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from stepguard.probe.lending import lending
from stepguard.probe.sharded import Sharded
from stepguard.probe.sharding import units_of
from stepguard.probe.values import Elsewhere, Move
from stepguard.probe.whole import Whole


@contextmanager
def elsewhere(model: nn.Module, moves: Sequence[Move]) -> Iterator[Elsewhere]:
    """How to put the parameters of a model elsewhere; where they are sharded all ranks must come here together."""
    units = units_of(model)
    if not units:
        yield Whole(model, moves)
        return
    for unit in units:
        unit.module.reshard()  # type: ignore[operator]  # an engine may have left it whole, to be quick
    with lending(units, moves) as lend:
        yield Sharded(model, moves, units, lend)
