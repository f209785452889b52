from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch.optim import Optimizer

from stepguard.guard.budget import Budget
from stepguard.guard.policy import Settings
from stepguard.guard.ranks import Ranks
from stepguard.guard.trigger import Trigger

Why = Literal["old", "near", "first", "told"]
_WHY: tuple[Why | None, ...] = (None, *get_args(Why))
"""From what matters least on."""
_NEXT_TO_NOTHING = 0.01
"""Share of a step's time that watching may take where it need not be; then none comes as a surprise."""
_EVERY = 8
"""Steps from one look at that to the next."""


class Pacing:
    """Which steps a guard looks at and which it measures, the same on all ranks.

    Args:
        settings: The guard's.
        optimizer: Whose steps they are.
        ranks: Those that make them.

    Attributes:
        rates: The learning rate of each parameter group at the last step that was looked at.
    """

    def __init__(self, settings: Settings, optimizer: Optimizer, ranks: Ranks):
        self._optimizer, self._ranks, self._every = optimizer, ranks, settings.every
        self._trigger = Trigger(settings.target, settings.budget) if settings.triggered else None
        self._watching, self._watches_all = Budget(_NEXT_TO_NOTHING, 1), False
        self.rates: list[float] = []
        self._norms: list[float] = []
        self._r = self._tau = 0.0
        self._unread = 0

    def looks_at(self, step: int) -> bool:
        """Whether what the optimizer does in this step is looked at."""
        return self._trigger is not None or step % self._every == 0

    def worth_watching(self, step: int) -> bool:
        """Whether the forward of this step, still to be made, may be wanted again; its learning rate may be set."""
        if self._trigger is None:
            return step % self._every == 0
        if not self._norms:
            return True
        rates = self._rates_now()
        grown = [now / before if before > 0 else 1.0 for now, before in zip(rates, self.rates, strict=False)]
        if len(grown) != len(self._norms):
            return True
        norms = [max(g, 1.0) * n for g, n in zip(grown, self._norms, strict=True)]
        return self._watches_all or self._trigger.worth_watching(step, norms)

    def why(self, step: int, norms: Sequence[float] | None, unwatched: bool) -> tuple[Why | None, bool]:
        """Why this step must be measured, on any rank, None if it need not be; and whether it came unwatched to any.

        Args:
            step: Its number.
            norms: Euclidean norm of each parameter group's part of the update; None if that could not be found out.
            unwatched: Whether its forward was not watched here.
        """
        if norms is not None and 0 < math.hypot(*norms) < math.inf:
            self._norms, self.rates = list(norms), self._rates_now()
        why = self._why_here(step, norms)
        try:
            place, unseen = self._ranks.largest([_WHY.index(why), unwatched])
        except Exception:  # nobody to agree with any more
            return why, unwatched
        return _WHY[int(place)], bool(unseen)

    def _why_here(self, step: int, norms: Sequence[float] | None) -> Why | None:
        if self._trigger is None:
            return "told"
        if norms is None:
            return "near"
        moved = math.hypot(*norms) != 0  # a step that moves nothing is no danger, and tells nothing
        return self._trigger.due(step, norms) if moved else None

    @property
    def before(self) -> tuple[float, float] | None:
        """Largest learning rate and length of the step that was looked at last; None before the first."""
        return (max(self.rates, default=0.0), math.hypot(*self._norms)) if self._norms else None

    def expected(self) -> float:
        """About what r will be, by the last reading and the norm of the update; 0 where nothing is known."""
        return self._r * math.hypot(*self._norms) / self._tau if self._tau else 0.0

    def unseen(self, step: int, norms: Sequence[float]) -> tuple[float, float]:
        """r, as predicted, of a step that is near the limit but was not watched, and what makes it harmless."""
        assert self._trigger is not None
        return self._trigger.unseen(step, norms)

    def read(self, step: int, r: float, norms: Sequence[float], seconds: float) -> None:
        """A step was measured, in this time."""
        if math.isfinite(r):
            self._r, self._tau = r, math.hypot(*norms)
        if self._trigger:
            self._trigger.reading(step, r, norms)
            self._trigger.budget.reading(seconds)

    def watched(self, seconds: float) -> None:
        """A step was watched, which took this time."""
        if self._trigger:
            self._watching.reading(seconds)
            self._watches_all = self._watching.beside <= _NEXT_TO_NOTHING

    def unread(self, seconds: float) -> None:
        """A step was not measured, and took this time as a whole."""
        if self._trigger:
            self._trigger.budget.plain_step(seconds)
            self._watching.plain_step(seconds)
            self._unread += 1
            if self._unread % _EVERY == 0:  # it takes longer to find out than to watch
                self._watches_all = self._watching.beside <= _NEXT_TO_NOTHING

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to measure the same steps."""
        trigger, watching = self._trigger and self._trigger.state_dict(), self._watching.state_dict()
        return {
            "trigger": trigger,
            "budget": watching,
            "norms": self._norms,
            "rates": self.rates,
            "r": self._r,
            "tau": self._tau,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take up what an earlier run had learned."""
        if not state:
            return
        if self._trigger and state["trigger"]:
            self._trigger.load_state_dict(state["trigger"])
        if "budget" in state:
            self._watching.load_state_dict(state["budget"])
            self._watches_all = self._watching.beside <= _NEXT_TO_NOTHING
        self._norms, self.rates, self._r, self._tau = (state[name] for name in ("norms", "rates", "r", "tau"))

    def _rates_now(self) -> list[float]:
        # An optimizer that sets its own rate, such as Adafactor's relative steps, has None here.
        return [float(group.get("lr") or 0.0) for group in self._optimizer.param_groups]
