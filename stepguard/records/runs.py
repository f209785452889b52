from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from stepguard.records.collapse import CollapseReading
from stepguard.records.lines import FILE, SCHEMA
from stepguard.records.reading import Event, Reading


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
    """

    path: Path
    name: str = ""
    starts: list[dict[str, Any]] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    collapses: list[CollapseReading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    times: dict[int, float] = field(default_factory=dict)
    logged_steps: dict[int, int] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    ended: bool = False
    _open: int = 0
    _bytes: int = 0
    _lines: int = 0
    _begins: set[str] = field(default_factory=set)
    _writers: dict[str, int] = field(default_factory=dict)
    _events_by: list[str] = field(default_factory=list)

    def update(self) -> bool:
        """Read what has been written since the last time; returns whether that was anything."""
        with open(self.path, "rb") as file:
            if file.seek(0, os.SEEK_END) < self._bytes:  # it is another one by now
                vars(self).update(vars(Run(self.path, self.name)))
            file.seek(self._bytes)
            lines = file.read().split(b"\n")[:-1]  # what has no end yet is still being written
        for line in lines:
            self._lines += 1
            self._bytes += len(line) + 1
            if line.strip():
                self._take(line)
        return bool(lines)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "start":
                self._start(values)
            elif kind == "end":
                self._open -= 1
                self.ended = self._open <= 0
            elif kind == "event":
                event = Event(values["step"], values["event"], values["message"], data=values.get("data"))
                self._put(self.events, event, values)
            elif kind == "reading":
                self._put(self.readings, Reading(**_fields(Reading, values)), values)
            elif kind == "collapse":
                self._put(self.collapses, CollapseReading(**_fields(CollapseReading, values)), values)
        except (ValueError, KeyError, TypeError, AttributeError):
            self.notices.append(f"{self.path.name}, line {self._lines}: no record, left out")

    def _start(self, values: dict[str, Any]) -> None:
        # A guard and a monitor of one process both begin and both end.
        same = bool(self.starts) and self.starts[-1].get("pid") == values.get("pid")
        self._open, self.ended = (self._open if same else 0) + 1, False
        self.starts.append(values)
        by, pid = values.get("writes", ""), values.get("pid", 0)
        if by in self._writers or pid not in self._writers.values():
            self._writers = {}  # of a process that is no more
        self._writers[by] = pid
        self._begins.add(by)
        if values.get("schema") != SCHEMA:
            known = f"this stepguard knows schema {SCHEMA}"
            self.notices.append(f"{self.path.name}, line {self._lines}: schema {values.get('schema')}, {known}")

    def _put(self, where: list[Any], what: Any, values: dict[str, Any]) -> None:
        by = values.get("by", "")
        if by in self._begins:  # the first of a process; what an earlier one has from here on never was
            self._begins.remove(by)
            self._forget(what.step, {other for other in self._writers if other != by})
        self.times[what.step] = float(values.get("time", 0.0))
        where.append(what)
        if isinstance(what, Event):
            self._events_by.append(by)
        if "logged_step" in values:
            self.logged_steps[what.step] = values["logged_step"]

    def _forget(self, step: int, spared: set[str]) -> None:
        """All from a step on, but what others write that are at work."""
        stays = [e.step < step or by in spared for e, by in zip(self.events, self._events_by, strict=True)]
        self.events[:] = itertools.compress(self.events, stays)
        self._events_by[:] = itertools.compress(self._events_by, stays)
        if "guard" not in spared:
            self.readings[:] = [r for r in self.readings if r.step < step]
        if "monitor" not in spared:
            self.collapses[:] = [c for c in self.collapses if c.step < step]
        left = {item.step for items in (self.readings, self.collapses, self.events) for item in items}
        for where in (self.times, self.logged_steps):
            for gone in where.keys() - left:
                del where[gone]


def read_runs(folder: str | PathLike[str]) -> list[Run]:
    """Every run below a folder, by name; :meth:`Run.update` goes on reading one.

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
    runs = find_runs(root)
    for run in runs:
        run.update()
    return runs


def find_runs(root: Path) -> list[Run]:
    """Every run below a folder, by name, not read yet."""
    runs = []
    for path in sorted(root.rglob(FILE.format("*"))):
        inside = path.parent.relative_to(root).as_posix()
        optimizer = path.stem.removeprefix("stepguard").removeprefix("-")
        runs.append(Run(path, " ".join(part for part in ("" if inside == "." else inside, optimizer) if part) or "."))
    return runs


def _fields(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Those that it has, with the numbers that JSON has not."""
    found = {name: values[name] for name in kind._fields if name in values}
    return {name: float(v) if v in ("inf", "-inf", "nan") and isinstance(v, str) else v for name, v in found.items()}
