from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from stepguard.records import CollapseReading, Event
from stepguard.views.figure import COLOURS, panels_over_time, save_with_legend

ALONE, CURED = COLOURS[1], COLOURS[3]
EVENTS = {"warning": "warned", "onset": "1% collapsed"}


def save_picture(
    path: str,
    title: str,
    readings: Mapping[str, Sequence[CollapseReading]],
    events: Sequence[Event],
    test: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
    """Draw headroom, collapse and test accuracy over the epochs, for a run alone and for the same run cured.

    Args:
        path: Where the PNG goes.
        title: What was run.
        readings: Of the run alone and of the cured one, by the name of the run.
        events: Of the run alone.
        test: Epochs and test accuracies in percent of both.
    """
    last = max(r.step for run in readings.values() for r in run)
    figure, (room, share, accuracy) = panels_over_time(title, (3.4, 2.3, 2.3), last)
    for (name, run), colour in zip(readings.items(), (ALONE, CURED), strict=True):
        steps = [r.step for r in run]
        room.fill_between(
            steps,
            [r.headroom_min for r in run],
            [r.headroom_median for r in run],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        room.plot(steps, [r.headroom_nats for r in run], color=colour, linewidth=1.8)
        share.plot(steps, [100 * r.collapse for r in run], color=colour, linewidth=1.8)
        accuracy.plot(*zip(*test[name], strict=True), color=colour, linewidth=1.8)
    _forecast(room, events)
    room.axhspan(-4, 0, color=ALONE, alpha=0.1, linewidth=0)
    room.axhline(0, color=ALONE, linewidth=1)
    room.set_ylim(-4, None)
    room.set_ylabel("headroom, nats")
    share.set_ylabel("softmax sum = 1, %")
    accuracy.set_ylabel("test accuracy, %")
    accuracy.set_ylim(-3, 103)
    accuracy.set_xlabel("epoch")
    save_with_legend(figure, path, _handles(list(readings)))


def _forecast(room: Any, events: Sequence[Event]) -> None:
    for event in events:
        reading = event.reading
        if event.kind not in EVENTS or not isinstance(reading, CollapseReading):
            continue
        room.plot(event.step, max(reading.headroom_nats, 0), "o", color=ALONE, markersize=5)
        room.annotate(
            f"{EVENTS[event.kind]} at {event.step:,}",
            (event.step, max(reading.headroom_nats, 0)),
            xytext=(8, 14 if event.kind == "warning" else 8),
            textcoords="offset points",
            color=ALONE,
        )
        if event.kind == "warning" and reading.forecast is not None:
            room.plot(
                [event.step, reading.forecast], [reading.headroom_nats, 0], color="black", linewidth=1.2, linestyle=":"
            )


def _handles(names: Sequence[str]) -> list[Any]:
    handles = [Line2D([], [], color=c, linewidth=2.5, label=n) for n, c in zip(names, (ALONE, CURED), strict=True)]
    return [*handles, Line2D([], [], color="black", linewidth=1.2, linestyle=":", label="forecast when warned")]
