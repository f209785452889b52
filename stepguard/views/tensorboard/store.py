from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepguard.records import read_runs
from stepguard.records.lines import FILE
from stepguard.views.tensorboard.tables import Tables

FRESH = 2.0
"""Seconds for which what was read is taken to be all there is."""


class Store:
    """The runs below a log folder, read on as they grow; for several threads.

    Args:
        root: The log folder; it need not be there yet.
    """

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._tables: dict[str, Tables] = {}
        self._read = self._looked = -FRESH
        self._there = False

    def there(self) -> bool:
        """Whether any run is there; cheap."""
        if not self._there and time.monotonic() - self._looked > FRESH:
            self._looked = time.monotonic()
            self._there = any(True for _ in self.root.rglob(FILE.format("*")))
        return self._there

    @contextmanager
    def runs(self) -> Iterator[dict[str, Tables]]:
        """The runs by name; they hold still until the block ends."""
        with self._lock:
            if time.monotonic() - self._read > FRESH:
                self._update()
                self._read = time.monotonic()
            yield self._tables

    def _update(self) -> None:
        known = {id(tables.run): tables for tables in self._tables.values()}
        try:
            runs = read_runs(self.root, [tables.run for tables in known.values()], scalars=False)
        except FileNotFoundError:  # no folder yet, or a run that was deleted while we looked
            runs = [] if not self.root.is_dir() else [t.run for t in known.values() if t.run.path.exists()]
        self._tables = {run.name: known.get(id(run)) or Tables(run) for run in runs}
