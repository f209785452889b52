from __future__ import annotations

import math

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.done import Done, Forecast
from stepguard.views.report.blocks import Block, Chart, Grid, Say, Section
from stepguard.views.report.wording import counted, number, percent

_TOLD = 5


def what_was_done(post: PostMortem) -> list[Section]:
    """How many steps the guard let through, shortened, withheld."""
    done, about = post.done, post.about
    if done is None:
        return []
    counts = {
        "beyond the target": done.beyond,
        "let through all the same": done.let_through,
        "shortened": done.shortened,
        "lengthened": done.lengthened,
        "withheld": done.withheld,
        "not finite": done.not_finite,
        "moved nothing": done.skipped,
        "could not be measured": done.unmeasured,
    }
    rows = [("measured", f"{done.measured:,}", percent(done.measured / about.steps))]
    rows += [(name, f"{n:,}", percent(n / about.steps)) for name, n in counts.items() if n or name in _ALWAYS]
    said = " ".join(_peaks(done))
    blocks: list[Block] = [Grid(("steps", "", "of all"), tuple(rows)), *([Say(said)] if said else [])]
    if done.cures:
        spans = [f"from step {on:,} " + ("to the end" if off is None else f"to {off:,}") for on, off in done.cures]
        more = f", and {len(spans) - _TOLD} more times" if len(spans) > _TOLD else ""
        blocks.append(Say(f"perpGrad was on {', '.join(spans[:_TOLD])}{more}."))
    if done.forecasts:
        blocks.append(Say(_forecasts(done.forecasts)))
    if done.measured:
        blocks += [Chart("lengths"), *([] if post.headroom else [Chart("rates")])]
    return [Section("What the guard did", tuple(blocks))]


_ALWAYS = ("beyond the target",)


def _peaks(done: Done) -> list[str]:
    said = []
    if done.asked:
        said.append(f"The largest r that was asked for is {number(done.asked.r)}, at step {done.asked.step:,}.")
    if done.made and done.made.r and done.made != done.asked:
        said.append(f"The largest that was made is {number(done.made.r)}, at step {done.made.step:,}.")
    if done.shortened:
        said.append(f"The one that was shortened most was made {number(done.shortest)} times as long.")
    if done.longest_held > 1:
        said.append(f"At most {done.longest_held:,} in a row were shortened.")
    return said


def _forecasts(forecasts: tuple[Forecast, ...]) -> str:
    told = []
    for forecast in forecasts[:_TOLD]:
        came = "did not come" if forecast.over else "the run has not come so far"
        if forecast.came is not None:
            came = f"came at step {forecast.came:,}"
        told.append(f"at step {forecast.step:,}, of step {forecast.crossing:,}: {came}")
    more = f"; and {len(forecasts) - _TOLD:,} more" if len(forecasts) > _TOLD else ""
    came_true = sum(forecast.came is not None for forecast in forecasts)
    said = f"{counted(len(forecasts), 'forecast')} that r would pass its target, {came_true:,} came true: "
    return f"{said}{'; '.join(told)}{more}."


def other_targets(post: PostMortem) -> list[Section]:
    """A table of what other targets would have done."""
    if not post.targets:
        return []
    rows = tuple(
        (
            f"{t.target:g}" + (" (this run)" if t.own else ""),
            ("at least " if t.at_least else "") + f"{t.beyond:,}",
            percent(t.share),
            "" if math.isnan(t.factor) else number(t.factor),
        )
        for t in post.targets
    )
    text = (
        "Counted from the same readings, with what the run did otherwise unchanged; a step that is shortened changes "
        "those after it."
    )
    if post.about.measured < post.about.steps:
        text += " Steps that were not measured count as below."
    headings = ("target", "steps beyond", "of all", "made times as long, on average")
    return [Section("What other targets would have done", (Grid(headings, rows), Say(text)))]
