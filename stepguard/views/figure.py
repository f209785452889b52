"""What the pictures share: size, colours, panels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct to every kind of colour vision; grey for the run to compare with.
COLOURS = ("#7a7a7a", "#D55E00", "#E69F00", "#0072B2", "#CC79A7", "#56B4E9")
SAFE = "#009E73"


def panels_over_time(title: str, heights: Sequence[float], last: int) -> tuple[Figure, Sequence[Any]]:
    """Panels of these heights in inches over one axis from 0 to ``last``: 1,600 pixels wide in all."""
    figure = Figure(figsize=(10, sum(heights)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), sharex=True, height_ratios=heights)
    panels[0].set_title(title, loc="left", fontsize=13, fontweight="bold", pad=10)
    panels[0].set_xlim(0, max(last, 1))
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure, panels


def save_with_legend(figure: Figure, path: str | PathLike[str], handles: Iterable[Any]) -> None:
    """Write the PNG, the legend in one row below the panels."""
    handles = list(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handlelength=1.6)
    figure.savefig(path)
