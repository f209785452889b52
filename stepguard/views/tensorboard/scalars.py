from __future__ import annotations

import logging
import math
import threading
import time
from pathlib import Path

from stepguard.records.tensorboard_runs import ScalarFolder, scalar_folders
from stepguard.views.tensorboard.tables import Tables

EVERY = 5.0
"""Seconds from one look at the folders to the next."""


class Scalars:
    """The runs that have no records but scalars of TensorBoard, which nobody waits for: they take long to read.

    Args:
        root: The log folder; it need not be there yet.

    Attributes:
        tables: The runs; another list whenever something came.
    """

    def __init__(self, root: Path):
        self._root = root
        self._folders: list[ScalarFolder] = []
        self._reader: threading.Thread | None = None
        self._looked = -math.inf
        self.tables: list[Tables] = []

    def catch_up(self, after: threading.Thread) -> None:
        """Read what is new in a thread, which first lets another one end."""
        if (self._reader and self._reader.is_alive()) or time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        self._reader = threading.Thread(target=self._update, args=(after,), name="stepguard-scalars", daemon=True)
        self._reader.start()

    def _update(self, after: threading.Thread) -> None:
        after.join()
        try:
            folders = scalar_folders(self._root, self._folders)
            came = [one for one in folders if one.update()]
        except OSError:  # a folder that was deleted while we looked; the next look is another one
            logging.getLogger("tensorboard").info("StepGuard tab: scalars could not be read", exc_info=True)
            return
        if came or folders != self._folders:
            known = {id(tables.run): tables for tables in self.tables}
            self.tables = [known.get(id(run)) or Tables(run) for one in folders for run in one.runs]
        self._folders = folders
