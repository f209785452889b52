"""What the page asks for, from the tables of runs: plain values for JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from stepguard.records import Event
from stepguard.views.tensorboard.parts import parts
from stepguard.views.tensorboard.series import extremes, marks, plain, visible
from stepguard.views.tensorboard.tables import CHARTS, Tables

MOST_MARKS = 20_000


def about(tables: Tables) -> dict[str, Any]:
    """A run in a line: what it has and how far it is."""
    run = tables.run
    last = run.readings[-1] if run.readings else None
    collapse = run.collapses[-1] if run.collapses else None
    steps = [rows[end].step for rows in (run.readings, run.collapses, run.events) if rows for end in (0, -1)]
    return {
        "name": run.name,
        "version": tables.version,
        "readings": len(run.readings),
        "collapses": len(run.collapses),
        "events": len(run.events),
        "breaches": tables.breaches(),
        "first": min(steps, default=None),
        "last": max(steps, default=None),
        "r": _number(last.r) if last else None,
        "target": last.target if last and math.isfinite(last.target) else None,
        "dtype": collapse.dtype if collapse else None,
        "ended": run.ended,
        "notices": run.notices[-5:],
    }


def series(tables: Tables, first: float, last: float, buckets: int) -> dict[str, Any]:
    """The charts of a run from step ``first`` to ``last``; each bucket's extremes, and every breach."""
    charts = {}
    for chart, (records, names) in CHARTS.items():
        table = tables.table(records, names)
        part = visible(table["step"], first, last)
        table = {name: column[part] for name, column in table.items()}
        rows = extremes(table, names, buckets)
        charts[chart] = {name: plain(column[rows]) for name, column in table.items()}
    table = tables.table("readings", ("r", "scale", "target"))
    inside = (table["step"] >= first) & (table["step"] <= last)
    beyond = marks({name: column[inside] for name, column in table.items()}, MOST_MARKS)
    return {
        "version": tables.version,
        "charts": charts,
        "targets": [t for t in np.unique(table["target"][inside]).tolist() if math.isfinite(t)][:10],
        "marks": [[step, _number(r), _number(scale), count] for step, r, scale, count in beyond],
    }


def events(
    runs: Iterable[Tables], kinds: Collection[str], text: str, first: float, last: float, limit: int
) -> dict[str, Any]:
    """The latest events that fit, how many of each kind there are at all, and how many fit."""
    counts: Counter[str] = Counter()
    found: list[tuple[Event, Tables]] = []
    for tables in runs:
        for event in tables.run.events:
            counts[event.kind] += 1
            fits = (not kinds or event.kind in kinds) and first <= event.step <= last
            if fits and (not text or text in event.message.lower()):
                found.append((event, tables))
    found.sort(key=lambda pair: -pair[0].step)
    rows = [
        {
            "run": tables.run.name,
            "step": event.step,
            "kind": event.kind,
            "message": event.message,
            "time": tables.run.times.get(event.step),
            "parts": parts(event),
        }
        for event, tables in found[:limit]
    ]
    return {"counts": dict(counts), "total": len(found), "events": rows}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
