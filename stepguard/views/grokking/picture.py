from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

from matplotlib.lines import Line2D

from stepguard.views.figure import COLOURS, panels_over_time, save_with_legend
from stepguard.views.frame import CollapseFrame, alignment, collapsed, headroom
from stepguard.views.grokking.milestones import GENERALISED, first_epoch

Histories = Mapping[str, Sequence[CollapseFrame]]
"""Frames by run, then by epoch."""

RUN_COLOURS = (COLOURS[1], COLOURS[3])
NOTES = (
    "",
    "headroom: nats left to the first 1% of the training pairs until their softmax collapses",
    "collapsed: training pairs whose softmax sum is exactly 1",
    "alignment: how much of -grad only scales the weights, before perpGrad takes that out",
)


def save_picture(path: str | PathLike[str], histories: Histories, *, title: str) -> None:
    """Draw accuracies, headroom, collapse and alignment over the epochs into a PNG, 1,600 pixels wide."""
    last = max(map(len, histories.values())) - 1
    figure, panels = panels_over_time(title, (3.4, 2.3, 1.7, 2.0), last)
    accuracy, room, share, cosine = panels
    for frames, colour in zip(histories.values(), RUN_COLOURS, strict=False):
        _curve(accuracy, frames, lambda frame: frame.train_accuracy, colour, linewidth=1.2, linestyle=(0, (3, 2)))
        _curve(accuracy, frames, lambda frame: frame.test_accuracy, colour)
        _mark_generalised(accuracy, frames, colour)
        _curve(room, frames, headroom, colour)
        _curve(share, frames, collapsed, colour)
        _curve(cosine, frames, alignment, colour)
    _label_panels(accuracy, room, share, cosine)
    for panel, note in zip(panels[1:], NOTES[1:], strict=True):
        panel.set_title(note, loc="left", fontsize=9, color="#555555", pad=4)
    save_with_legend(figure, path, _handles(histories))


def _curve(
    panel: Any, frames: Sequence[CollapseFrame], value: Callable[[CollapseFrame], float], colour: str, **style: Any
) -> None:
    # What was not measured is passed over, not drawn as a gap: between two readings the run went on.
    points = [(frame.step, value(frame)) for frame in frames if math.isfinite(value(frame))]
    if points:
        panel.plot(*zip(*points, strict=True), color=colour, **{"linewidth": 1.8} | style)


def _mark_generalised(panel: Any, frames: Sequence[CollapseFrame], colour: str) -> None:
    epoch = first_epoch([frame.test_accuracy for frame in frames], GENERALISED)
    if epoch is not None:
        panel.plot(epoch, frames[epoch].test_accuracy, "o", color=colour, markersize=5)
        text = f"{GENERALISED:g}% of the test pairs\nat epoch {epoch}"
        # To the left where it would not stay on the paper.
        left = epoch > 0.8 * len(frames)
        panel.annotate(
            text,
            (epoch, GENERALISED),
            xytext=(-10 if left else 10, -12),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=9,
            color=colour,
        )


def _label_panels(accuracy: Any, room: Any, share: Any, cosine: Any) -> None:
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_ylim(-3, 103)
    room.set_ylabel("nats")
    bottom = min(room.get_ylim()[0], -1)
    room.axhspan(bottom, 0, color=COLOURS[1], alpha=0.12, linewidth=0)
    room.axhline(0, color=COLOURS[1], linewidth=1, zorder=1)
    room.set_ylim(bottom=bottom)
    share.set_ylabel("%")
    if share.get_ylim()[1] < 1:  # nothing, or next to it: fractions of a percent would look like much
        share.set_ylim(0, 1)
        share.set_yticks([0, 1])
    share.set_ylim(bottom=0)
    cosine.set_ylabel("cosine")
    cosine.set_xlabel("epoch")


def _handles(histories: Histories) -> list[Any]:
    handles: list[Any] = [
        Line2D([], [], color=colour, linewidth=2.5, label=run)
        for run, colour in zip(histories, RUN_COLOURS, strict=False)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.8, label="test"))
    handles.append(Line2D([], [], color="black", linewidth=1.2, linestyle=(0, (3, 2)), label="train"))
    return handles
