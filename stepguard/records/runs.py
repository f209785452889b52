from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from stepguard.records.collapse import CollapseReading
from stepguard.records.lines import FILE, SCHEMA
from stepguard.records.reading import Event, Reading
from stepguard.records.rows import Rows

AT_ONCE = 2**18
"""Bytes that are parsed together: twice as fast as line by line."""
KINDS = frozenset(("reading", "collapse", "event"))


@dataclass
class Run:
    """What one file of records holds, as far as it has been read.

    A run that went on from an earlier step has the steps from there on twice: the later ones count, as they did for it.

    Attributes:
        path: The file.
        name: Of its folder, from where was looked, and of the optimizer if there are several.
        starts: The first lines of the processes that wrote it.
        readings: Of r, in the order of steps.
        collapses: Looks at the softmax, likewise.
        events: What happened, likewise; without their readings.
        times: Unix time of each step that has a record.
        notices: What could not be read.
        bytes_read: How far it has been read.
        bytes_left: What an update left to the next, because it was to read so much at most.
    """

    path: Path
    name: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    readings: Rows[Reading] = field(default_factory=lambda: Rows(Reading))
    collapses: Rows[CollapseReading] = field(default_factory=lambda: Rows(CollapseReading))
    events: list[Event] = field(default_factory=list)
    times: dict[int, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    bytes_read: int = 0
    bytes_left: int = 0
    _lines: int = 0
    _begins: bool = False

    def update(self, most: float = math.inf) -> bool:
        """Read what has been written since the last time, about ``most`` bytes; returns whether that was anything."""
        before = self.bytes_read
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < self.bytes_read:  # it is another one by now
                vars(self).update(vars(Run(self.path, self.name)))
                before = -1
            first = self.bytes_read
            while self.bytes_read - first < most and (block := _lines(file, self.bytes_read)):
                self._read(block)
        self.bytes_left = max(0, size - self.bytes_read) if self.bytes_read - first >= most else 0
        return self.bytes_read != before

    def _read(self, block: bytes) -> None:
        count = block.count(b"\n")
        if not self._begins and self._take(block, count):
            self._lines += count
        else:
            for line in block.split(b"\n")[:-1]:
                self._lines += 1
                if line.strip() and not self._take(line + b"\n", 1):
                    self._tell("no record, left out")
        self.bytes_read += len(block)

    def _take(self, block: bytes, count: int) -> bool:
        """Take all of so many lines, or none; several only if no process begins there."""
        try:
            records = json.loads(b"[%s]" % block[:-1].replace(b"\n", b","))
            kinds = [record["kind"] for record in records]
            if len(records) != count or (count > 1 and not KINDS.issuperset(kinds)):
                return False
            if kinds[0] == "start":
                return self._start(records[0])
            of = {kind: [r for r in records if r["kind"] == kind] if kind in kinds else [] for kind in KINDS}
            odd = b'inf"' in block or b'nan"' in block
            readings = self.readings.taken(of["reading"], odd)
            collapses = self.collapses.taken(of["collapse"], odd)
            events = [Event(r["step"], r["event"], r["message"]) for r in of["event"]]
            times = {r["step"]: r.get("time", 0.0) for r in records if r["kind"] in KINDS}
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if self._begins and times:  # the first of a process; what an earlier one has from here on never was
            self._begins = False
            self._cut(min(times))
        self.readings.extend(readings)
        self.collapses.extend(collapses)
        self.events += events
        self.times.update(times)
        return True

    def _cut(self, step: int) -> None:
        self.readings.cut(step)
        self.collapses.cut(step)
        self.events[:] = [event for event in self.events if event.step < step]

    def _start(self, values: dict[str, Any]) -> bool:
        self.starts.append({key: value for key, value in values.items() if key != "kind"})
        self._begins = True
        if values.get("schema") != SCHEMA:
            self._tell(f"schema {values.get('schema')}, this stepguard knows schema {SCHEMA}")
        return True

    def _tell(self, what: str) -> None:
        self.notices.append(f"{self.path.name}, line {self._lines}: {what}")


def _lines(file: BinaryIO, start: int) -> bytes:
    """The next whole lines; what has no end yet is still being written."""
    file.seek(start)
    block = file.read(AT_ONCE)
    while b"\n" not in block and (more := file.read(AT_ONCE)):
        block += more
    return block[: block.rfind(b"\n") + 1]


def read_runs(folder: str | PathLike[str], known: Iterable[Run] = (), most: float = math.inf) -> list[Run]:
    """Every run below a folder, by name; :meth:`Run.update` goes on reading one.

    Args:
        folder: Of a run, or of several.
        known: What an earlier call gave: of those only what is new is read, into the same objects.
        most: How many bytes to read of each, about; the next call goes on.

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
    runs = []
    for path in sorted(root.rglob(FILE.format("*"))):
        inside = path.parent.relative_to(root).as_posix()
        optimizer = path.stem.removeprefix("stepguard").removeprefix("-")
        name = " ".join(part for part in ("" if inside == "." else inside, optimizer) if part) or "."
        runs.append(read.get(path) or Run(path, name))
        runs[-1].update(most)
    return runs
