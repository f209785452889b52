from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from stepguard.records import decoding
from stepguard.records.by_step import ByStep
from stepguard.records.collapse import CollapseReading
from stepguard.records.lines import FILE, SCHEMA
from stepguard.records.reading import Event, Reading
from stepguard.records.rows import Rows

AT_ONCE = 2**17
"""Bytes that are parsed together: four times as fast as line by line, and what they become stays in the cache."""


@dataclass
class Run:
    """What one file of records holds, as far as it has been read.

    A run that went on from an earlier step has the steps from there on twice: the later ones count, as they did for it.
    A guard and a monitor of one file each count their own steps, so that what one of them begins anew the other keeps.

    Attributes:
        path: The file.
        name: Of its folder, from where was looked, and of the optimizer if there are several.
        starts: The first lines of the processes that wrote it.
        readings: Of r, in the order of steps.
        collapses: Looks at the softmax, likewise.
        events: What happened, likewise; without their readings.
        times: Unix time of each step that has a record.
        logged_steps: Where each of them lies on the axis of a trainer's own log, if there is one.
        notices: What could not be read.
        ended: Whether the process that wrote last has said that it is over; one that was killed has not.
        bytes_read: How far it has been read.
        bytes_left: What an update left to the next, because it was to read so much at most.
    """

    path: Path
    name: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    readings: Rows[Reading] = field(default_factory=lambda: Rows(Reading))
    collapses: Rows[CollapseReading] = field(default_factory=lambda: Rows(CollapseReading))
    events: list[Event] = field(default_factory=list)
    times: ByStep[float] = field(default_factory=lambda: ByStep("d"))
    logged_steps: ByStep[int] = field(default_factory=lambda: ByStep("q"))
    notices: list[str] = field(default_factory=list)
    ended: bool = False
    bytes_read: int = 0
    bytes_left: int = 0
    _open: int = 0
    _lines: int = 0
    _begins: set[str] = field(default_factory=set)
    _writers: dict[str, int] = field(default_factory=dict)
    _events_by: list[str] = field(default_factory=list)

    def update(self, most: float = math.inf) -> bool:
        """Read what has been written since the last time, about ``most`` bytes; returns whether that was anything."""
        before = self.bytes_read
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < self.bytes_read:  # it is another one by now
                vars(self).update(vars(Run(self.path, self.name)))
                before = -1
            first = self.bytes_read
            while self.bytes_read - first < most and (block := _whole_lines(file, self.bytes_read)):
                self._read(block)
        self.bytes_left = max(0, size - self.bytes_read) if self.bytes_read - first >= most else 0
        return self.bytes_read != before

    def _read(self, block: bytes) -> None:
        records = decoding.records(block)
        if records and self._goes_on(records) and self._take(records):
            self._lines += len(records)
        else:
            for line in block.split(b"\n")[:-1]:
                self._lines += 1
                if line.strip() and not self._line(line):
                    self._tell("no record, left out")
        self.bytes_read += len(block)

    def _line(self, line: bytes) -> bool:
        """Take what one line says; whether that was a record, if maybe of a kind that we do not know."""
        try:
            record = decoding.record(line)
            if not isinstance(record, dict):
                return self._take([record])
            return {"start": self._start, "end": self._end}.get(record["kind"], lambda _: True)(record)
        except (ValueError, KeyError, TypeError, AttributeError):
            return False

    def _take(self, records: list[Any]) -> bool:
        """Take all of these records of steps, or none; several only if no process begins there."""
        kinds = decoding.READING, decoding.COLLAPSE, decoding.EVENT
        found = {*map(type, records)}  # of most blocks one
        read, looked, events = (
            records if found == {kind} else [r for r in records if isinstance(r, kind)] if kind in found else []
            for kind in kinds
        )
        try:
            readings = self.readings.taken(decoding.values(read))
            collapses = self.collapses.taken(decoding.values(looked))
        except OverflowError:
            return False
        if self._begins:
            self._begin(records[0].by, records[0].step)
        self.readings.extend(readings)
        self.collapses.extend(collapses)
        self.events += [Event(r.step, r.event, r.message, data=r.data) for r in events]
        self._events_by += [r.by for r in events]
        self.times.extend([r.step for r in records], [r.time for r in records])
        logged = [r for r in records if r.logged_step is not None]
        self.logged_steps.extend([r.step for r in logged], [r.logged_step for r in logged])
        return True

    def _goes_on(self, records: list[Any]) -> bool:
        """Whether none of them is the first of its writer."""
        return not self._begins or self._begins.isdisjoint(r.by for r in records)

    def _start(self, values: dict[str, Any]) -> bool:
        # A guard and a monitor of one process both begin and both end.
        same = bool(self.starts) and self.starts[-1].get("pid") == values.get("pid")
        self._open, self.ended = (self._open if same else 0) + 1, False
        self.starts.append({key: value for key, value in values.items() if key != "kind"})
        by, pid = values.get("writes", ""), values.get("pid", 0)
        if by in self._writers or pid not in self._writers.values():
            self._writers = {}  # of a process that is no more
        self._writers[by] = pid
        self._begins.add(by)
        if values.get("schema") != SCHEMA:
            self._tell(f"schema {values.get('schema')}, this stepguard knows schema {SCHEMA}")
        return True

    def _end(self, values: dict[str, Any]) -> bool:
        self._open -= 1
        self.ended = self._open <= 0
        return True

    def _begin(self, by: str, step: int) -> None:
        """The first record of a process: what an earlier one has from here on never was."""
        if by in self._begins:
            self._begins.remove(by)
            self._forget(step, {other for other in self._writers if other != by})

    def _forget(self, step: int, spared: set[str]) -> None:
        """All from a step on, but what others write that are at work."""
        stays = [e.step < step or by in spared for e, by in zip(self.events, self._events_by, strict=True)]
        self.events[:] = itertools.compress(self.events, stays)
        self._events_by[:] = itertools.compress(self._events_by, stays)
        if "guard" not in spared:
            self.readings.cut(step)
        if "monitor" not in spared:
            self.collapses.cut(step)
        left = {r for rows in (self.readings, self.collapses) for r in rows.columns["step"][rows.first(step) :]}
        left.update(event.step for event in self.events)
        self.times.cut(step, left)
        self.logged_steps.cut(step, left)

    def _tell(self, what: str) -> None:
        self.notices.append(f"{self.path.name}, line {self._lines}: {what}")


def _whole_lines(file: BinaryIO, start: int) -> bytes:
    """The next of them; what has no end yet is still being written."""
    file.seek(start)
    block = file.read(AT_ONCE)
    while b"\n" not in block and (more := file.read(AT_ONCE)):
        block += more
    return block[: block.rfind(b"\n") + 1]


def read_runs(
    folder: str | PathLike[str], known: Iterable[Run] = (), most: float = math.inf, scalars: bool = True
) -> list[Run]:
    """Every run below a folder, by name; :meth:`Run.update` goes on reading one.

    Where a folder has no records but event files of TensorBoard, the run is made of our scalars and texts in them, as
    far as they tell it.

    Args:
        folder: Of a run, or of several.
        known: What an earlier call gave: of those only what is new is read, into the same objects.
        most: How many bytes to read of each, about; the next call goes on.
        scalars: Whether to read event files, which takes long where others wrote them.

    Raises:
        FileNotFoundError: If there is no such folder.

    Example:
        >>> import tempfile
        >>> from stepguard.records import JsonLines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = JsonLines(folder)
        ...     lines.event(Event(3, "skipped", "step 3 moved nothing"))
        ...     lines.close()
        ...     (run,) = read_runs(folder)
        >>> run.events[0].message
        'step 3 moved nothing'
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; give the log_dir of a run, or one that holds several")
    read = {run.path: run for run in known}
    runs = [read.get(run.path, run) for run in find_runs(root)]
    for run in runs:
        run.update(most)
    if scalars:
        from stepguard.records.tensorboard_runs import scalar_folders  # which needs this module

        for other in scalar_folders(root):
            other.update()
            runs += other.runs
    return sorted(runs, key=lambda run: run.path)


def find_runs(root: Path) -> list[Run]:
    """Every run below a folder that has records, by name, not read yet."""
    runs = []
    for path in sorted(root.rglob(FILE.format("*"))):
        optimizer = path.stem.removeprefix("stepguard").removeprefix("-")
        runs.append(Run(path, run_name(path.parent.relative_to(root), optimizer)))
    return runs


def run_name(inside: Path, optimizer: str) -> str:
    """What a run is called: its folder inside the one where was looked, and its optimizer if there are several."""
    return " ".join(part for part in (inside.as_posix().removeprefix("."), optimizer) if part) or "."
