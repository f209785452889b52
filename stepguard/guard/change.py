from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.guard.gradients import check_gradients, gradients_of, return_gradients, withhold_gradients
from stepguard.guard.kept_points import KeptPoints
from stepguard.guard.movement import Movement
from stepguard.guard.ranks import Ranks
from stepguard.guard.statistics import RunningStatistics


class Change:
    """All that one optimizer step changes, so that less of it can be made: parameters, what is kept of them, averages.

    Gradients that are not finite are withheld from the optimizer, whose moments they would spoil for good.

    Args:
        model: What is trained.
        optimizer: By which.
        ranks: Those that train it.
        rescales: Whether it will be asked to :meth:`rescale`; keeping what that takes costs time.

    Attributes:
        withheld: Whether gradients were withheld in this step.
        gradient_norm: Norm of those that the optimizer would be given; None if unknown.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, ranks: Ranks, rescales: bool):
        self._optimizer, self._ranks = optimizer, ranks
        self._movement = Movement()
        self._kept = KeptPoints(optimizer) if rescales else None
        self._statistics = RunningStatistics(model) if rescales else None
        self._held: list[tuple[Tensor, Tensor]] = []
        self.withheld = False
        self.gradient_norm: float | None = None

    def keep_statistics(self) -> None:
        """Remember running averages as they are before a step's first forward."""
        if self._statistics:
            self._statistics.keep()

    def begin(self, watched: bool = True) -> None:
        """Keep everything as it is before the optimizer's step.

        Args:
            watched: Whether the step may be measured; if it is only looked at, gradients are not for their norm alone.
        """
        self.gradient_norm = None
        if self._kept:
            sound, self.gradient_norm = self._ranks.check_gradients()
            if not sound:
                self._held = gradients_of(self._optimizer)
                self.withheld = True
                withhold_gradients(self._held)
        elif watched:
            self.gradient_norm = self._ranks.norm_here(lambda: check_gradients(self._optimizer).norm)
        self._movement.begin(self._optimizer)
        if self._kept:
            self._kept.begin()

    def return_gradients(self) -> None:
        """Let parameters have again what was withheld, also after a step that raised and never came to its end."""
        return_gradients(self._held)
        self._held, self.withheld = [], False

    def end(self, known: bool = True) -> list[float]:
        """What the optimizer has made: the norm of each parameter's part of it.

        Args:
            known: Whether :meth:`begin` went well; if not, other ranks are told so.
        """
        return self._ranks.norms(self._movement.end if known else None)

    def look_back(self) -> None:
        """Have the gradients' norm of a step that was not to be measured, from what the optimizer has left of them."""
        if self.gradient_norm is None:
            self.gradient_norm = self._ranks.norm_here(lambda: check_gradients(self._optimizer).norm)

    def by_group(self, norms: Sequence[float]) -> list[float]:
        """Of each parameter group as a whole."""
        return self._movement.by_group(norms)

    def moves(self, norms: Sequence[float]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each parameter that has moved: itself, its value before the step, and its update."""
        m = self._movement
        each = zip(m.params, m.old, m.update, norms, strict=True)
        return [(p, old, u) for p, old, u, norm in each if norm > 0]

    def weight_norm(self) -> float | None:
        """Norm of all that the optimizer moves, as it was before; None if unknown."""
        return self._ranks.norm_here(self._movement.length_before)

    def rescale(self, scale: float) -> None:
        """Have the step be ``scale`` times as long; with 0 it is as if the batch had never been."""
        if scale != 1:
            self._movement.rescale(scale)
            if self._kept:
                self._kept.rescale(scale, self._movement)
        if scale == 0 and self._statistics:
            self._statistics.put_back()

    def forget(self) -> None:
        """Hold nothing any more."""
        self._movement, self._kept = Movement(), None
