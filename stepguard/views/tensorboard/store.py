from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stepguard.records import read_runs
from stepguard.records.lines import FILE
from stepguard.views.tensorboard.scalars import Scalars
from stepguard.views.tensorboard.tables import Tables

FRESH = 2.0
"""Seconds for which what was read is taken to be all there is."""
PATIENCE = 0.5
"""Seconds that an answer waits for what is new; then it tells what there is so far."""
AT_ONCE = 2**24
"""Bytes that are read before others may look."""


class Store:
    """The runs below a log folder, read on as they grow; for several threads.

    Args:
        root: The log folder; it need not be there yet.
    """

    def __init__(self, root: Path):
        self.root = root
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._error: Exception | None = None
        self._tables: dict[str, Tables] = {}
        self._read = self._looked = self._began = -math.inf
        self._there = self._once = False
        self._scalars = Scalars(root)

    def there(self) -> bool:
        """Whether any run is there; cheap."""
        if not self._there and time.monotonic() - self._looked > FRESH:
            self._looked = time.monotonic()
            self._there = any(True for _ in self.root.rglob(FILE.format("*")))
            if not self._there:
                self.catch_up(patience=0)  # there may be scalars
        return self._there or bool(self._scalars.tables)

    @contextmanager
    def runs(self) -> Iterator[dict[str, Tables]]:
        """The runs by name, as far as they have been read; they hold still until the block ends.

        Those of scalars come when they have been read; an answer does not wait for them.

        Raises:
            OSError: If one could not be read.
        """
        self.catch_up()
        with self._lock:
            error, self._error = self._error, None
            if error:
                raise error
            yield {**{tables.run.name: tables for tables in self._scalars.tables}, **self._tables}

    def catch_up(self, patience: float = PATIENCE) -> None:
        """Read what is new, in a thread that goes on when our patience ends, counted from when it began."""
        with self._lock:
            if not (self._reader and self._reader.is_alive()):
                if time.monotonic() - self._read < FRESH:
                    return
                self._reader = threading.Thread(target=self._update, name="stepguard", daemon=True)
                self._began = time.monotonic()
                self._reader.start()
            reader = self._reader
            self._scalars.catch_up(after=reader)
            left = self._began + patience - time.monotonic()
        reader.join(max(0.0, left))

    def read(self) -> float:
        """Share of what is there that has been read."""
        done, left = (sum(getattr(t.run, name) for t in self._tables.values()) for name in ("bytes_read", "bytes_left"))
        return done / (done + left) if left else float(self._once)

    def _update(self) -> None:
        left = True
        while left:
            with self._lock:
                try:
                    left = self._read_on()
                except Exception as error:  # for who asks next
                    self._error, left = error, False
                self._read = time.monotonic()
            time.sleep(0.001)  # let in who waits for the lock
        self._once = True

    def _read_on(self) -> bool:
        known = {id(tables.run): tables for tables in self._tables.values()}
        try:
            runs = read_runs(self.root, [t.run for t in known.values()], AT_ONCE / max(1, len(known)), scalars=False)
        except FileNotFoundError:  # no folder yet, or a run that was deleted while we looked
            runs = [t.run for t in known.values() if t.run.path.exists()]
        self._tables = {run.name: known.get(id(run)) or Tables(run) for run in runs}
        return any(run.bytes_left for run in runs)
