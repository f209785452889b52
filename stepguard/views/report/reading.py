from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from stepguard.diagnosis import post_mortem
from stepguard.records import Run, find_runs, read_runs
from stepguard.views.report.told import Told

_AT_ONCE = 2**25
"""Bytes that are read from one word of progress to the next."""
_PATIENCE = 1.5
"""Seconds without a word."""


def read(folder: Path, only: str | None, say: Callable[[str], object]) -> list[Told]:
    """Read runs and find out what happened in them.

    Args:
        folder: Of a run, or of several.
        only: Name of the one to report; None is all of them.
        say: Takes a line of progress, where it takes long.

    Raises:
        FileNotFoundError: If there is no such folder.
        LookupError: If there is no run in it, or none of that name.
    """
    if not folder.is_dir():
        hint = f"; give its folder, {folder.parent}" if folder.exists() else ""
        raise FileNotFoundError(
            f"there is no folder {folder}{hint or '; give the log_dir= of a run, or one above several'}"
        )
    progress = _Progress(say)
    chosen = _chosen(folder, only)
    told = []
    for i, run in enumerate(chosen, 1):
        where = f"{run.name} ({i} of {len(chosen)})" if len(chosen) > 1 else run.name
        if run.path.is_file():
            size = run.path.stat().st_size
            while run.update(_AT_ONCE) and run.bytes_left:
                progress.tell(f"{where}: {run.bytes_read / max(size, 1):.0%} of {size / 1e6:,.0f} MB read")
        progress.tell(f"{where}: {len(run.readings):,} readings")
        told.append(Told(run, post_mortem(run)))
    return told


class _Progress:
    """Says how far it is, now and then."""

    def __init__(self, say: Callable[[str], object]):
        self._say, self._said = say, time.monotonic()

    def tell(self, line: str) -> None:
        if time.monotonic() - self._said >= _PATIENCE:
            self._say(line)
            self._said = time.monotonic()


def _chosen(folder: Path, only: str | None) -> list[Run]:
    runs = find_runs(folder)
    written = {run.path.parent for run in runs}
    # Folders without records may have TensorBoard's scalars, which are read to know what runs they are.
    if any(path.parent not in written for path in folder.rglob("*tfevents*")):
        known = {run.path for run in runs}
        runs = [*runs, *(run for run in read_runs(folder, known=runs, most=0) if run.path not in known)]
    for run in runs:
        run.name = folder.resolve().name if run.name == "." else run.name
    chosen = [run for run in runs if only in (None, run.name)]
    if chosen:
        return sorted(chosen, key=lambda run: run.name)
    if runs:
        raise LookupError(f"there is no run {only} in {folder}; there are {', '.join(run.name for run in runs)}")
    raise LookupError(
        f"there are no records in {folder}. They are written where stepguard is told to: "
        f'stepguard.attach(model, optimizer, log_dir="{folder}"), and in Lightning where its logger writes'
    )
