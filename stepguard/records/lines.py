from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from stepguard.records.collapse import CollapseReading
from stepguard.records.reading import Event, Reading

FILE = "stepguard{}.jsonl"
"""The name of the file, in a run's folder; between the braces ``-name``, if there is one."""
SCHEMA = 1
"""Version of what is in it; a reader of another knows less, or more, than is there."""


class JsonLines:
    """Writes every reading and event as a line of JSON, at once, so that a killed run leaves all of them.

    Each process that writes begins with a line ``{"kind": "start", "schema": 1, "time": ...}``; what follows is of
    kind ``reading``, ``collapse`` or ``event``, with the fields of :class:`Reading`, :class:`CollapseReading` and
    :class:`Event`; ``{"kind": "end"}`` comes last, unless the process was killed. Numbers that JSON does not have are
    the strings ``"inf"``, ``"-inf"`` and ``"nan"``. A run that goes on appends to the file that is there.

    Args:
        folder: Where the file shall be; made if it is not there.
        about: What to say of the run in the first line: settings, names of model and optimizer.
        name: Which of several optimizers of a run it is of, for a file of its own; empty for the only one.
        logged_step: Where on the axis of a trainer's own log this moment lies, to be written beside the step.

    Raises:
        OSError: If nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = JsonLines(folder)
        ...     lines.event(Event(3, "skipped", "step 3 moved nothing"))
        ...     lines.close()
        ...     print((Path(folder) / "stepguard.jsonl").read_text().splitlines()[1])
        {"kind": "event", "time": ..., "step": 3, "event": "skipped", "message": "step 3 moved nothing"}
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        about: Mapping[str, Any] | None = None,
        name: str = "",
        logged_step: Callable[[], int] | None = None,
    ):
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder) / FILE.format(f"-{name}" if name else "")
        # Unbuffered, and each line in one write: of a guard and a monitor neither comes into the other's.
        self._file = open(path, "ab", buffering=0)
        weakref.finalize(self, self._file.close)  # also where whoever it was made for could not be
        self._breaks_off = _breaks_off(path)
        self._logged_step = logged_step
        self._by = {"by": about["writes"]} if about and "writes" in about else {}
        self._write("start", {"schema": SCHEMA, "pid": os.getpid(), **(about or {})})

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Write a reading."""
        self._record("collapse" if isinstance(reading, CollapseReading) else "reading", reading.as_dict())

    def event(self, event: Event) -> None:
        """Write an event; its reading has a line of its own."""
        values = {"step": event.step, "event": event.kind, "message": event.message}
        self._record("event", {**values, **({"data": event.data} if event.data else {})})

    def close(self) -> None:
        """Say that the run is over, and close the file."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # a full disk, of which there was word when records were lost
                self._write("end", {"pid": os.getpid()})
            self._file.close()

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        logged = {"logged_step": self._logged_step()} if self._logged_step else {}
        self._write(kind, {**values, **logged, **self._by})

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        line = {"kind": kind, "time": round(time.time(), 3), **values}
        whole = b"\n" * self._breaks_off + json.dumps(_plain(line), allow_nan=False).encode() + b"\n"
        self._breaks_off = True
        written = self._file.write(whole)
        if written < len(whole):  # a disk that runs full takes a part, and has its error for the next to come
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._breaks_off = False


def _breaks_off(path: Path) -> bool:
    """Whether the last line is only a part of one, as a killed process leaves it on a full disk."""
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
