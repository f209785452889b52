from __future__ import annotations

import math

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.headroom import Headroom
from stepguard.diagnosis.softmax import ALONG, Softmax
from stepguard.views.report.blocks import Block, Chart, Grid, Say, Section
from stepguard.views.report.wording import counted, number, percent

_ALIGNED = (
    (ALONG, "steps mostly scale the weights, which lets the logits grow and teaches little"),
    (0.3, "in part steps only scale the weights"),
    (-math.inf, "steps do not just scale the weights"),
)
_ALIKE = 1.3
"""Times as large as the smallest room the largest is where it is the same throughout."""


def the_softmax(post: PostMortem) -> list[Section]:
    """How near the softmax came to collapse."""
    near = post.softmax
    if near is None:
        return []
    rows = [(near.dtype, number(near.first), number(near.lowest), number(near.last))]
    rows += [
        (f"{w.dtype} would have", number(near.first + w.last - near.last), number(w.lowest), number(w.last))
        for w in near.wider
    ]
    headings = ("nats of headroom", "at first", f"lowest, step {near.lowest_step:,}", "at last")
    said = " ".join(_of_the_softmax(near))
    blocks: tuple[Block, ...] = (Grid(headings, tuple(rows)), Say(said), Chart("headroom"))
    return [Section("How near the softmax came to collapse", blocks)]


def _of_the_softmax(near: Softmax) -> list[str]:
    classes = f", of {near.classes:,} classes" if near.classes > 1 else ""
    said = [f"{counted(near.looks, 'look')}{classes}. Headroom is that of one sample in a hundred."]
    if near.collapsed_most > 0:
        said.append(
            f"Most of all, {percent(near.collapsed_most)} of the samples, had collapsed at step "
            f"{near.collapsed_most_step:,}, {percent(near.collapsed)} at the last look."
        )
    if near.last > 0 and near.forecast is not None:
        said.append(f"If it goes on as it did, collapse begins at about step {near.forecast:,.0f}.")
    if not math.isnan(near.alignment):
        what = next(words for least, words in _ALIGNED if near.alignment >= least)
        cosine = f"{near.alignment:.2f}".replace("-0.00", "0.00")
        said.append(f"In the second half the gradient was along the weights with a cosine of {cosine}: {what}.")
        if near.scales and not near.curing:
            said.append("perpGrad would take out that part.")
    if near.curing:
        said.append(f"perpGrad was on at {percent(near.curing)} of the looks.")
    return said


def the_rate(post: PostMortem) -> list[Section]:
    """How far the learning rate could have gone."""
    room = post.headroom
    if room is None:
        return []
    rows = tuple(
        (f"{p.first:,} to {p.last:,}", number(p.lr), number(p.times), number(p.borne), f"{p.readings:,}")
        for p in room.phases
    )
    grid = Grid(("steps", "learning rate", "times", "could have been", "readings"), rows)
    blocks = (Say(_of_the_rate(room)), grid, Say(_left_out(room)), Chart("rates"))
    return [Section("How far the learning rate could go", blocks)]


def _of_the_rate(room: Headroom) -> str:
    times = [phase.times for phase in room.phases]
    low, high = min(times), max(times)
    if high <= _ALIKE * low:
        return f"It could have been about {number(low)} times as large throughout."
    first, last = room.phases[0], room.phases[-1]
    said = f"It could have been {number(first.times)} times as large up to step {first.last:,}, "
    said += f"{number(last.times)} times from step {last.first:,} on"
    tightest = min(room.phases, key=lambda phase: phase.times)
    if tightest.times < min(first.times, last.times):
        said += f", and {number(tightest.times)} times from step {tightest.first:,} to {tightest.last:,}"
    return said + "."


def _left_out(room: Headroom) -> str:
    said = (
        "r is proportional to the learning rate; this is what 95% of the readings of each part would have borne, "
        "with all else as it was. Other limits than that of the softmax may come before it."
    )
    if room.until is not None:
        said += f" Left out: readings from step {room.until:,} on, for what was let through may have damaged the model."
    elif room.left_out:
        said += f" Left out: {counted(room.left_out, 'reading')} beyond the target, for the reason found above."
    return said


def the_cost(post: PostMortem) -> list[Section]:
    """What watching took."""
    cost = post.cost
    if cost is None:
        return []
    said = []
    for name, middle, last in (
        ("The guard", cost.guard, cost.guard_last),
        ("The collapse monitor", cost.monitor, cost.monitor_last),
    ):
        if not math.isnan(middle):
            said.append(
                f"{name} took {percent(middle)} of the time in the median of its readings, {percent(last)} at the last."
            )
    if cost.measured:
        said.append(f"{cost.measured:,} of {cost.steps:,} steps were measured ({percent(cost.measured / cost.steps)}).")
    return [Section("What it cost", (Say(" ".join(said)),))]
