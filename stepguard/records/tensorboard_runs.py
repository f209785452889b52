from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stepguard.records.collapse import CollapseReading
from stepguard.records.event_files import PATTERN, EventFile, Found, Points
from stepguard.records.lines import FILE
from stepguard.records.reading import Event, Reading
from stepguard.records.rows import Rows
from stepguard.records.runs import Run, run_name

UNKNOWN = "unknown"
_NOTICE = "{}: made from TensorBoard's scalars, for it has no records; what they do not tell is unknown"
_BREACH = re.compile(r"r = (\S+) \(target (\S+)\), tau = (\S+), rho = (\S+): (.*)")
_SCALED = re.compile(r"scaled by (\S+), lr (\S+) -> (\S+)")
_OPTIMIZER = re.compile(r"optimizer (\d+), ")
_SAYS = {
    "observed only": "breach",
    ": scaled by": "clamp",
    "back to calm": "clamp",
    "the step was withheld": "withheld",
    "the optimizer moved nothing": "skipped",
    "was not measured": "unmeasured",
    "was not looked": "unmeasured",
    "went without perpGrad": "unmeasured",
    "r is that of": "found",
    "steps that may be near the limit are all measured": "found",
    "the loss takes a StableMax": "found",
    "measured by a finite difference from step": "fallback",
    "will pass the target": "forecast",
    " comes from sample": "culprit",
    " was changed from ": "changed",
    "all asked for more than the target": "held",
    "softmax collapse is near": "warning",
    "the softmax has collapsed": "onset",
    "headroom is back": "recovery",
    "perpGrad is switched on": "cure_on",
    "perpGrad is switched off": "cure_off",
    "training is asked to stop": "stop",
}
"""Kinds of events, by what their messages say."""


@dataclass
class ScalarRun(Run):
    """A run as TensorBoard's scalars and texts tell it, on their axis; the folder is its path.

    A target is taken from where the learning rate was safe, else from the text of an event, else from the longest
    step that a clamp left; it is nan where nothing tells. ``estimator``, ``why`` and ``dtype`` are "unknown", counts 0.
    """

    files: list[EventFile] = field(default_factory=list)
    optimizer: str = ""
    _seen: tuple[int, ...] = ()

    def update(self, most: float = math.inf) -> bool:
        """Read what has been written since the last time; returns whether that was anything."""
        for file in self.files:
            file.read_on()
        sizes = tuple(file.size for file in self.files)
        if sizes == self._seen:
            return False
        self._seen = sizes
        self._build([file.found for file in sorted(self.files, key=lambda file: file.begun)])
        self.notices = [_NOTICE.format(self.path.name), *(file.trouble for file in self.files if file.trouble)]
        return True

    def _build(self, files: Iterable[Found]) -> None:
        points: dict[str, Points] = {"stepguard": {}, "softmax": {}}
        texts: list[tuple[int, str, set[str]]] = []
        for found in files:
            groups = {group for group in points if found.points.get((self.optimizer, group))}
            for group in groups:
                new = found.points[self.optimizer, group]
                first = min(new)  # what an earlier file has from here on never was
                points[group] = {step: values for step, values in points[group].items() if step < first} | new
                texts = [text for text in texts if text[0] < first or group not in text[2]]
            texts += [(step, text, groups) for step, text in found.texts if _is_of(self.optimizer, text)]
            self.times.update(found.times)
        self.events = [Event(step, _kind(text), text) for step, text, _ in sorted(texts, key=lambda text: text[0])]
        told = {step: _told(text) for step, text, _ in texts}
        readings = [_reading(step, values, told.get(step, {})) for step, values in sorted(points["stepguard"].items())]
        self.readings = Rows(Reading, _with_targets([reading for reading in readings if reading]))
        collapses = [_collapse(step, values) for step, values in sorted(points["softmax"].items())]
        self.collapses = Rows(CollapseReading, [reading for reading in collapses if reading])


class ScalarFolder:
    """The event files of a folder, read on as they grow, and the runs that they tell of.

    Args:
        folder: Where the files are.
        named: From the index of an optimizer, or "", to the name of its run.

    Attributes:
        runs: One, or one for each of several optimizers; made anew whenever something came, so that who looks at the
            ones before may go on.
    """

    def __init__(self, folder: Path, named: Callable[[str], str]):
        self.folder, self._named = folder, named
        self._files: dict[Path, EventFile] = {}
        self.runs: list[Run] = []

    def update(self) -> bool:
        """Read what has been written since the last time; returns whether that was anything of ours."""
        paths = [path for path in sorted(self.folder.glob(PATTERN)) if path.is_file()]
        gone = self._files.keys() - set(paths)
        self._files = {path: self._files.get(path) or EventFile(path) for path in paths}
        came = [file for file in self._files.values() if file.read_on()]
        if came or gone:
            self.runs = self._made(list(self._files.values()))
        return bool(came or gone)

    def _made(self, files: list[EventFile]) -> list[Run]:
        optimizers = sorted({optimizer for file in files for optimizer, _ in file.found.points})
        if not optimizers and any(file.found.texts for file in files):
            optimizers = [""]  # a run in which nothing could be measured
        runs: list[Run] = []
        for optimizer in optimizers:
            runs.append(ScalarRun(self.folder, self._named(optimizer), files=files, optimizer=optimizer))
            runs[-1].update()
        return runs


def scalar_folders(root: Path, known: Iterable[ScalarFolder] = ()) -> list[ScalarFolder]:
    """Every folder below a folder that has event files and no records; not read yet, but for those that are known."""
    read = {one.folder: one for one in known}
    written = {path.parent for path in root.rglob(FILE.format("*"))}
    found = sorted({path.parent for path in root.rglob(PATTERN)} - written)
    return [read.get(folder) or ScalarFolder(folder, partial(run_name, folder.relative_to(root))) for folder in found]


def _is_of(optimizer: str, text: str) -> bool:
    found = _OPTIMIZER.match(text)
    return (found[1] if found else "") == optimizer


def _kind(text: str) -> str:
    return next((kind for says, kind in _SAYS.items() if says in text), UNKNOWN)


def _told(text: str) -> dict[str, float]:
    """What the text of a breach tells, to three digits, for steps of which only r was written."""
    found = _BREACH.search(text)
    if not found:
        return {}
    values = dict(zip(("r", "target", "tau", "rho"), map(float, found.groups()[:4]), strict=True))
    scaled = _SCALED.search(found[5])
    if scaled:
        return {**values, "scale": float(scaled[1]), "lr": float(scaled[2]), "lr_applied": float(scaled[3])}
    return {**values, "scale": 0.0 if "withheld" in found[5] else 1.0}


def _reading(step: int, scalars: dict[str, float], told: dict[str, float]) -> Reading | None:
    r = scalars.get("r_breach", scalars.get("r"))
    if r is None:
        return None
    values = {**told, **scalars}
    scale, lr_applied = values.get("scale", math.nan), values.get("lr_applied", math.nan)
    by_scalars = "lr_applied" in scalars and scalars.get("scale", 0.0) > 0
    lr = lr_applied / scale if by_scalars else told.get("lr", math.nan)
    safe = values.get("lr_safe", math.nan) * r / lr if lr > 0 else math.nan
    # Scalars have seven digits.
    target = values.get("target", math.nan) if math.isnan(safe) else float(f"{safe:.6g}")
    return Reading(
        step=step,
        r=r,
        tau=values.get("tau", math.nan),
        rho=values.get("rho", math.nan),
        spread=values.get("spread", math.pi * r),
        scale=scale,
        lr=lr,
        lr_applied=lr_applied,
        target=target,
        estimator=UNKNOWN,
        cost_share=values.get("cost_share"),
        why=UNKNOWN,
    )


def _with_targets(readings: list[Reading]) -> list[Reading]:
    """Where a reading does not tell its target, the one before it does, or else the next."""
    known = [reading.target for reading in readings if not math.isnan(reading.target)]
    longest = [reading.r * reading.scale for reading in readings if 0 < reading.scale < 1]
    target = known[0] if known else max(longest, default=math.nan)
    found = []
    for reading in readings:
        target = target if math.isnan(reading.target) else reading.target
        found.append(reading._replace(target=target))
    return found


def _collapse(step: int, values: dict[str, float]) -> CollapseReading | None:
    if "headroom_nats" not in values or "collapse" not in values:
        return None
    headroom, left = values["headroom_nats"], values.get("steps_to_collapse")
    layers = {name[1:]: value for name, value in values.items() if name.startswith("/")}
    return CollapseReading(
        step=step,
        samples=0,
        collapse=values["collapse"],
        headroom_nats=headroom,
        headroom_min=values.get("headroom_min", math.nan),
        headroom_median=values.get("headroom_median", math.nan),
        dtype=UNKNOWN,
        classes=0,
        zero_terms=values.get("zero_terms"),
        zero_gradients=values.get("zero_gradients"),
        trend=values.get("headroom_trend"),
        forecast=None if left is None else step + left,
        nlm_alignment=values.get("nlm_alignment"),
        logit_norm=values.get("logit_norm"),
        weight_norm=values.get("weight_norm"),
        curing=bool(values.get("curing")),
        cost_share=values.get("cost_share"),
        layers=layers or None,
    )
