from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from stepguard.records.collapse import CollapseReading
from stepguard.records.lines import FILE, SCHEMA
from stepguard.records.reading import Event, Reading
from stepguard.records.rows import Rows

AT_ONCE = 2**18
"""Bytes that are parsed together: twice as fast as line by line."""


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
    """

    path: Path
    name: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    readings: Rows[Reading] = field(default_factory=lambda: Rows(Reading))
    collapses: Rows[CollapseReading] = field(default_factory=lambda: Rows(CollapseReading))
    events: list[Event] = field(default_factory=list)
    times: dict[int, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    _bytes: int = 0
    _lines: int = 0
    _begins: bool = False

    def update(self) -> bool:
        """Read what has been written since the last time; returns whether that was anything."""
        before = self._bytes
        with open(self.path, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._bytes:  # it is another one by now
                vars(self).update(vars(Run(self.path, self.name)))
                before = -1
            file.seek(self._bytes)
            while lines := file.readlines(AT_ONCE):
                if not lines[-1].endswith(b"\n"):
                    lines.pop()  # what has no end yet is still being written
                if lines:
                    self._read(lines)
        return self._bytes != before

    def _read(self, lines: list[bytes]) -> None:
        if self._begins or not self._take(lines):
            for line in lines:
                self._lines += 1
                if line.strip() and not self._take([line]):
                    self._tell("no record, left out")
        else:
            self._lines += len(lines)
        self._bytes += sum(map(len, lines))

    def _take(self, lines: list[bytes]) -> bool:
        """Take all of them, or none; several only if no process begins there."""
        text = b",".join(lines)
        try:
            records = json.loads(b"[%s]" % text)
            steps = {kind: [r for r in records if r["kind"] == kind] for kind in ("reading", "collapse", "event")}
            if len(records) != len(lines) or (len(lines) > 1 and sum(map(len, steps.values())) < len(lines)):
                return False
            if records[0]["kind"] == "start":
                return self._start(records[0])
            odd = any(b'%s"' % number in text for number in (b"inf", b"nan"))
            readings = self.readings.taken(steps["reading"], odd)
            collapses = self.collapses.taken(steps["collapse"], odd)
            events = [Event(r["step"], r["event"], r["message"]) for r in steps["event"]]
            times = {r["step"]: float(r.get("time", 0.0)) for kind in steps.values() for r in kind}
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


def read_runs(folder: str | PathLike[str], known: Iterable[Run] = ()) -> list[Run]:
    """Every run below a folder, by name; :meth:`Run.update` goes on reading one.

    Args:
        folder: Of a run, or of several.
        known: What an earlier call gave: of those only what is new is read, into the same objects.

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
        runs[-1].update()
    return runs
