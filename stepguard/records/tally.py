from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from stepguard.records.collapse import CollapseReading
from stepguard.records.culprit import Culprit
from stepguard.records.reading import Event


class Tally(NamedTuple):
    """Events of one kind in one run, drawn together: a spike that is held gives one at every step."""

    first: Event
    latest: Event
    times: int


Tallies = dict[tuple[str, str], Tally]
"""By run and kind, in the order in which they first came."""


def add_events(tallies: Tallies, run: str, events: Iterable[Event]) -> list[Event]:
    """Count the events; return those that are the first of their kind in this run."""
    new = []
    for event in events:
        if event.kind == "found":
            continue  # worth a line in a log, not a place on a screen
        key = run, event.kind
        if key in tallies:
            tallies[key] = tallies[key]._replace(latest=event, times=tallies[key].times + 1)
        else:
            tallies[key] = Tally(event, event, 1)
            new.append(event)
    return new


def brief(event: Event, unit: str = "step") -> str:
    """The event in the few words that fit half a line: r and what was made of it, or what of the softmax is left.

    Example:
        >>> brief(Event(3, "skipped", "step 3: the optimizer moved nothing"))
        'step 3: the optimizer moved nothing'
    """
    reading = event.reading
    if culprit := Culprit.of(event):
        return f"{unit} {event.step}: {culprit.brief}"
    if reading is None:
        return event.message
    if isinstance(reading, CollapseReading):
        left = f"{reading.headroom_nats:.2f} nats left"
        return f"{unit} {event.step}: {f'{reading.collapse:.1%} collapsed' if reading.collapsed else left}"
    text = f"{unit} {event.step}: r {reading.r:.3g}"
    return {"breach": text, "withheld": f"{text}, not made"}.get(
        event.kind, f"{text} -> {reading.r * reading.scale:.3g}"
    )
