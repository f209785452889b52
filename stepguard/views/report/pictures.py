"""What the page draws: lines over steps, thinned out so that the extremes stay, and what is drawn behind them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stepguard.diagnosis.columns import column
from stepguard.diagnosis.softmax import BITS
from stepguard.diagnosis.track import Numbers
from stepguard.views.report.told import Told
from stepguard.views.tensorboard.series import extremes, marks, plain

_BUCKETS = 600
"""Parts of a run of which the extremes are kept, divided by the number of lines."""
_MARKS = 1500
_DIGITS = 6

Picture = dict[str, Any]


def pictures(told: Told) -> dict[str, Picture]:
    """Every chart of a run by its name, as the page's script takes them; plain values, JSON-able."""
    found: dict[str, Picture | None] = {"r": _r(told), "lengths": _lengths(told), "rates": _rates(told)}
    found |= {"headroom": _headroom(told), "zoom": _zoom(told)}
    return {name: picture for name, picture in found.items() if picture and _has_something(picture)}


def _r(told: Told) -> Picture:
    rows = told.run.readings
    table = {name: column(rows, name) for name in ("step", "r", "scale", "target")}
    targets = [t for t in np.unique(table["target"]).tolist() if math.isfinite(t)]
    judged = {**table, "target": np.where(np.isnan(table["target"]), np.finfo(float).max, table["target"])}
    beyond = [[step, _short(r), _short(s), n] for step, r, s, n in marks(judged, _MARKS)]
    return {
        "title": "r: the step over its radius",
        "help": "Safe below the target (shaded). Beyond it every step is marked.",
        **_lines(table, {"r": "r"}),
        "log": True,
        "wide": True,
        "reach": [v for t in targets for v in (t / 2, t * 2)],
        "zones": [{"value": min(targets), "name": "safe"}] if targets else [],
        "limits": [{"value": t, "label": f"target {t:g}"} for t in targets[:10]],
        "marks": beyond,
        **_note(told),
    }


def _lengths(told: Told) -> Picture:
    table = {name: column(told.run.readings, name) for name in ("step", "tau", "rho")}
    return {
        "title": "τ and ρ: the step's length, and its radius",
        "help": "A step is safe while τ stays below ρ.",
        **_lines(table, {"tau": "τ asked for", "rho": "ρ radius"}),
        "log": True,
        **_note(told),
    }


def _rates(told: Told) -> Picture:
    rows = told.run.readings
    table = {name: column(rows, name) for name in ("step", "lr", "lr_applied")}
    r, target = column(rows, "r"), column(rows, "target")
    with np.errstate(divide="ignore", invalid="ignore"):
        table["safe"] = np.where((r > 0) & (table["lr"] > 0), table["lr"] * target / r, np.nan)
    return {
        "title": "Learning rate",
        "help": "Asked for, applied, and the largest that would have been safe.",
        **_lines(table, {"lr": "asked", "lr_applied": "applied", "safe": "safe up to"}),
        "log": True,
        **_note(told),
    }


def _headroom(told: Told) -> Picture | None:
    near = told.post.softmax
    if near is None:
        return None
    names = {"headroom_nats": "one in a hundred", "headroom_min": "first sample", "headroom_median": "half"}
    table = {name: column(told.run.collapses, name) for name in ("step", *names)}
    others = [] if near.dtype not in BITS else [name for name in BITS if name != near.dtype]
    return {
        "title": "Softmax headroom, nats",
        "help": "Until the softmax of a sample absorbs all but one class. Below 0 it has.",
        **_lines(table, names),
        "reach": [0],
        "lowest": -21,
        "zones": [{"value": 0, "name": "unsafe"}],
        "limits": [
            {"value": 0, "label": f"collapse in {near.dtype}"},
            *(_other(near.dtype, other) for other in others),
        ],
        **_note(told),
    }


def _zoom(told: Told) -> Picture | None:
    zoom, main = told.post.zoom, told.post.diagnosis.main
    if zoom is None or main is None:
        return None
    table = {"step": zoom.step, **zoom.multiples}
    return {
        "title": f"Around step {main.step:,}: r and its factors, in multiples of what they were",
        "help": "Of the factors, the one that leaves 1 together with r is why.",
        **_lines(table, {name: name for name in zoom.multiples}),
        "log": True,
        "wide": True,
        "points": True,
        "limits": [{"value": 1, "label": "as usual", "faint": True, "side": "left"}],
        **_note(told),
    }


def _other(dtype: str, other: str) -> dict[str, Any]:
    nats = round((BITS[dtype] - BITS[other]) * math.log(2), 2)
    # The two halves are so near one another that their names would be on top of each other.
    return {
        "value": nats,
        "label": f"would be in {other}",
        "faint": True,
        "side": "left" if other == "float16" else "right",
    }


def _note(told: Told) -> dict[str, Any]:
    main = told.post.diagnosis.main
    return {"note": {"step": main.step, "text": f"step {main.step:,}: {main.cause}"}} if main else {}


def _lines(table: dict[str, Numbers], names: dict[str, str]) -> dict[str, Any]:
    rows = extremes(table, list(names), _BUCKETS // len(names))
    return {
        "step": [int(step) for step in table["step"][rows]],
        "lines": [{"label": label, "values": _rounded(table[name][rows])} for name, label in names.items()],
    }


def _rounded(values: Numbers) -> list[Any]:
    return [None if value is None else float(f"{value:.{_DIGITS}g}") for value in plain(values)]


def _short(value: float) -> float | str:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)


def _has_something(picture: Picture) -> bool:
    return any(value is not None for line in picture["lines"] for value in line["values"]) or bool(picture.get("marks"))
