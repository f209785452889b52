from __future__ import annotations

import math
import time


class Cost:
    """The share of the time that goes into something, from one reading of it to the next.

    Attributes:
        since: When that was.

    Example:
        >>> cost = Cost()
        >>> cost.share() is None  # nothing to compare with
        True
        >>> cost.add(1e-3)
        >>> 0 < cost.share()
        True
    """

    def __init__(self) -> None:
        self._own = 0.0
        self.since = -math.inf

    def add(self, seconds: float) -> None:
        """So much has gone into it."""
        self._own += seconds

    def share(self) -> float | None:
        """Its share since the last time this was asked; None at first."""
        now = time.perf_counter()
        share = self._own / (now - self.since) if self.since > -math.inf else None
        self._own, self.since = 0.0, now
        return share
