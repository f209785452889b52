from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from stepguard.records.metrics import BREACH, COLLAPSE_METRICS, METRICS

PATTERN = "*tfevents*"
_NAMES = {(m.group, m.name) for m in (*METRICS, BREACH, *COLLAPSE_METRICS)} | {("stepguard", "events")}
_ANY = "|".join(sorted({name for _, name in _NAMES}, key=len, reverse=True))
_TAG = re.compile(rf"(?:.*[^a-zA-Z0-9])?(stepguard|softmax)([^a-zA-Z0-9])({_ANY})(?:\2(.+))?")
_NUMBER = re.compile(r"(?:(.*)[^a-zA-Z0-9])?(\d+)")
_GROUPS = b"stepguard", b"softmax"
_LONGEST = max(map(len, _GROUPS))
_ALL = {"scalars": 0, "tensors": 0}
_LITTLE = {"images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1}


class Tag(NamedTuple):
    """A tag of ours, whatever a trainer has put around it.

    Example:
        >>> Tag.of("train/stepguard/r_breach/1")
        Tag(group='stepguard', name='r_breach', optimizer='1', layer='')
        >>> Tag.of("softmax/nlm_alignment/head.weight").layer
        'head.weight'
        >>> Tag.of("loss") is None
        True
    """

    group: str
    name: str
    optimizer: str
    """Index of the optimizer, where there are several."""
    layer: str
    """Of a metric that each parameter has."""

    @classmethod
    def of(cls, tag: str) -> Tag | None:
        """What a tag is, None if it is not one of ours."""
        found = _TAG.fullmatch(tag)
        if not found or (found[1], found[3]) not in _NAMES:
            return None
        group, name, rest = found[1], found[3], found[4] or ""
        if name == "events":
            return cls(group, name, "", "")
        if number := _NUMBER.fullmatch(rest):
            rest = number[1] or ""
        if rest and name != "nlm_alignment":
            return None
        return cls(group, name, number[2] if number else "", rest)


Points = dict[int, dict[str, float]]
"""Step to name to value; of a layer the name begins with a slash."""


class Found(NamedTuple):
    """What one file has of ours."""

    points: dict[tuple[str, str], Points]
    """By optimizer and group of metrics."""
    texts: list[tuple[int, str]]
    times: dict[int, float]


class EventFile:
    """One event file of TensorBoard, read on from where it was left.

    Attributes:
        size: Bytes, when it was last read.
        found: All that it had of ours then.
        trouble: What kept it from being read to its end.
    """

    def __init__(self, path: Path):
        self.path, self.trouble, self.size, self.found = path, "", -1, Found({}, [], {})
        self._events: Any = None  # until there is something of ours
        self._passed = 0

    def read_on(self) -> bool:
        """Read what has been written since the last time; returns whether that may be anything of ours."""
        size = self.path.stat().st_size
        if size == self.size:
            return False
        self.size = size
        if not self._events and not self._is_ours():
            return False
        if not self._events:
            # Imported here: it takes a second, and most runs have records of their own.
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            kept = {**_LITTLE, **_ALL}
            self._events = EventAccumulator(str(self.path), size_guidance=kept, purge_orphaned_data=False)
        try:
            self._events.Reload()
        except Exception as error:
            self.trouble = f"{self.path.name}: cannot be read to its end ({error})"
        self.found = self._find()
        return True

    def _is_ours(self) -> bool:
        """Whether what is new has one of our names: a look at the bytes is a hundred times faster than to read them."""
        with open(self.path, "rb") as file:
            file.seek(max(0, self._passed - _LONGEST))
            before = b""
            while block := file.read(2**20):
                if any(name in before + block for name in _GROUPS):
                    return True
                before = block[-_LONGEST:]
            self._passed = file.tell()
        return False

    @property
    def begun(self) -> float:
        """Unix time of its first event."""
        try:
            return float(self._events.FirstEventTimestamp())
        except (AttributeError, ValueError):  # nothing of ours, or nothing at all
            return self.path.stat().st_mtime

    def _find(self) -> Found:
        found = Found(defaultdict(lambda: defaultdict(dict)), [], {})
        tags: dict[str, Any] = self._events.Tags()
        for tag in tags["scalars"]:
            if ours := Tag.of(tag):
                points = found.points[ours.optimizer, ours.group]
                for event in self._events.Scalars(tag):
                    points[event.step][f"/{ours.layer}" if ours.layer else ours.name] = event.value
                    found.times[event.step] = event.wall_time
        for tag in tags["tensors"]:
            ours = Tag.of(tag)
            if ours and ours.name == "events":
                for event in self._events.Tensors(tag):
                    texts = [text.decode(errors="replace") for text in event.tensor_proto.string_val]
                    found.texts.extend((event.step, text) for text in texts)
                    found.times.setdefault(event.step, event.wall_time)
        return found
