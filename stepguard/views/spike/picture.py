# shape suffixes: S = seeds, T = steps
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stepguard.views.figure import COLOURS, SAFE, panels_over_time, save_with_legend
from stepguard.views.frame import StepFrame, r_asked, r_taken

Histories = Mapping[str, Sequence[Sequence[StepFrame]]]
"""Frames by run, then by seed, then by step."""

SPIKE = "#000000"


class Window(NamedTuple):
    """Steps from ``start`` up to but not including ``stop``."""

    start: int
    stop: int


def save_picture(path: str | PathLike[str], histories: Histories, *, title: str, target: float, spike: Window) -> None:
    """Draw loss, accuracy and r over the steps into a PNG, 1,600 pixels wide.

    One run a colour, in the mapping's order; with several seeds the median, in a band from the
    lowest to the highest.
    """
    last = max(len(seed) for seeds in histories.values() for seed in seeds) - 1
    figure, (loss, accuracy, r) = panels_over_time(title, (2.7, 2.7, 3.6), last)
    asked_differs = gaps = False
    for (seeds, colour), width in zip(zip(histories.values(), COLOURS, strict=False), _widths(), strict=False):
        gaps |= bool(np.isnan(_curve(loss, seeds, lambda frame: frame.loss, colour, width, log=True)).any())
        _curve(accuracy, seeds, lambda frame: frame.accuracy, colour, width)
        taken = _curve(r, seeds, r_taken, colour, width, log=True)
        asked = _values(seeds, r_asked, log=True)
        if not np.allclose(asked, taken, equal_nan=True):
            asked_differs = True
            r.plot(np.median(asked, axis=0), color=colour, linewidth=1, linestyle=(0, (3, 2)))
    _label_panels(loss, accuracy, r, target)
    for panel in (loss, accuracy, r):
        panel.axvspan(spike.start, min(spike.stop, last), color=SPIKE, alpha=0.05, linewidth=0)
    loss.set_ylabel("training loss" + "\n(gaps: 0 or not finite)" * gaps)
    save_with_legend(figure, path, _handles(histories, asked_differs))


def _widths() -> Iterator[float]:
    """The first run is what the others ought to look like: broad, so that it shows beneath one that does."""
    return chain([5.0], repeat(1.8))


def _values(seeds: Sequence[Sequence[StepFrame]], value: Callable[[StepFrame], float], log: bool = False) -> Any:
    values_ST = np.array([[value(frame) for frame in frames] for frames in seeds], dtype=float)
    # A gap rather than a point at the edge of the paper: what is not finite has no place on the axis.
    return np.where(np.isfinite(values_ST) & ((values_ST > 0) | (not log)), values_ST, np.nan)


def _curve(
    panel: Any,
    seeds: Sequence[Sequence[StepFrame]],
    value: Callable[[StepFrame], float],
    colour: str,
    width: float,
    log: bool = False,
) -> Any:
    values_ST = _values(seeds, value, log)
    if len(values_ST) > 1:
        steps = np.arange(values_ST.shape[1])
        panel.fill_between(steps, values_ST.min(0), values_ST.max(0), color=colour, alpha=0.2, linewidth=0)
    panel.plot(np.median(values_ST, axis=0), color=colour, linewidth=width, alpha=0.6 if width > 2 else 1)
    if log:
        panel.set_yscale("log")
    return values_ST


def _label_panels(loss: Any, accuracy: Any, r: Any, target: float) -> None:
    accuracy.set_ylabel("test accuracy, %")
    accuracy.set_ylim(0, 100)
    r.set_ylabel("r = tau / rho")
    r.set_xlabel("optimizer step")
    bottom = r.get_ylim()[0]
    r.axhspan(bottom, target, color=SAFE, alpha=0.18, linewidth=0)
    r.axhline(target, color=SAFE, linewidth=1, zorder=1)
    r.set_ylim(bottom=bottom)


def _handles(histories: Histories, asked_differs: bool) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=colour, linewidth=max(width, 2.5), alpha=0.6 if width > 2 else 1, label=run)
        for (run, colour), width in zip(zip(histories, COLOURS, strict=False), _widths(), strict=False)
    ]
    if asked_differs:
        handles.append(Line2D([], [], color="black", linewidth=1, linestyle=(0, (3, 2)), label="r asked for"))
    if (seeds := len(next(iter(histories.values())))) > 1:
        handles.append(Patch(color=COLOURS[0], alpha=0.4, linewidth=0, label=f"all {seeds} seeds"))
    handles.append(Patch(color=SPIKE, alpha=0.1, linewidth=0, label="spike"))
    handles.append(Patch(color=SAFE, alpha=0.25, linewidth=0, label="safe r"))
    return handles
