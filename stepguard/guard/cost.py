from __future__ import annotations

import time


class Cost:
    """The share of the time that goes into something, from one reading of it to the next.

    Example:
        >>> cost = Cost()
        >>> cost.share() is None  # nothing to compare with
        True
        >>> cost.stop(cost.start())
        >>> 0 < cost.share() < 1
        True
    """

    def __init__(self) -> None:
        self._own = 0.0
        self._begun: float | None = None
        self._since: float | None = None

    def start(self) -> float:
        """It begins."""
        self._begun = time.perf_counter()
        return self._begun

    def stop(self, started: float, more: float = 0.0) -> None:
        """It is over.

        Args:
            started: What :meth:`start` gave.
            more: Seconds that it took elsewhere.
        """
        self._own += time.perf_counter() - max(started, self._since or 0.0) + more
        self._begun = None

    def share(self) -> float | None:
        """Its share since the last time this was asked, up to now; None at first."""
        now = time.perf_counter()
        own = self._own + (now - self._begun if self._begun is not None else 0.0)
        share = own / (now - self._since) if self._since is not None else None
        self._own, self._since = 0.0, now
        return share
