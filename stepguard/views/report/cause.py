from __future__ import annotations

import math

from stepguard.diagnosis import Finding, PostMortem
from stepguard.diagnosis.verdict import sentence
from stepguard.records import Culprit
from stepguard.views.report.blocks import Block, Chart, Grid, Say, Section
from stepguard.views.report.wording import number, percent

_MEANING = {
    "gradient": "the norm of what the optimizer was given",
    "gain": "the length of the update over learning rate times gradient, what momentum and moments make of it",
    "update per learning rate": "its length over the learning rate, gradient and moments together",
    "sensitivity": "r of a step of length 1, how far the logits answer",
}
_OTHERS = 5
_NAMES = 12


def what_changed(post: PostMortem) -> list[Section]:
    """The factors of r at the step where the run went wrong, and what else was measured there."""
    main = post.diagnosis.main
    if main is None:
        return []
    blocks: list[Block] = []
    if len(main.evidence) > 1:
        blocks.append(Say(" ".join(sentence(text) for text in main.evidence[1:])))
    if main.factors:
        blocks += _factors(main)
    if post.zoom:
        blocks.append(Chart("zoom"))
    if post.around:
        rows = tuple((m.name, number(m.usual), number(m.at), _times(m.times)) for m in post.around)
        blocks.append(Grid(("also measured", "usual", f"at step {main.step:,}", "times"), rows))
    return [Section(f"What changed at step {main.step:,}", tuple(blocks))]


def _factors(main: Finding) -> list[Block]:
    if not all(math.isfinite(factor.at) for factor in main.factors):  # so nothing has a share in it
        known = tuple((f.name, number(f.before), _finite(f.at)) for f in main.factors)
        return [Grid(("factor of r", "before", f"at step {main.step:,}"), known)]
    rows = tuple((f.name, number(f.before), number(f.at), _times(f.times), percent(f.share)) for f in main.factors)
    bars = tuple(f.share if math.isfinite(f.share) else 0.0 for f in main.factors)
    said = [f"{f.name} is {_MEANING[f.name]}" for f in main.factors if f.name in _MEANING]
    text = "r is the product of these, so the shares of the growth of log r add up to 100%. "
    headings = ("factor of r", "before", f"at step {main.step:,}", "times", "share")
    return [Grid(headings, rows, bars=bars), Say(text + sentence("; ".join(said)))]


def where_from(post: PostMortem) -> list[Section]:
    """Which sample, classes, layers and parameters made the worst steps."""
    main = post.diagnosis.main
    if main is None or not main.culprits:
        return []
    worst = main.culprits[0]
    blocks: list[Block] = [Say(sentence(worst.message))]
    for title, parts in (("layer", worst.layers), ("parameter", worst.parameters), ("group", worst.groups)):
        if parts and (title != "group" or len(parts) > 1):
            blocks.append(_parts(title, worst, parts))
    if len(main.culprits) > 1:
        others = "; ".join(f"step {c.step:,}, r = {number(c.r)}: {c.brief}" for c in main.culprits[1 : _OTHERS + 1])
        blocks.append(Say(f"Other steps that were looked into: {others}."))
    return [Section("Where it comes from", tuple(blocks))]


def _parts(title: str, culprit: Culprit, parts: dict[str, float]) -> Grid:
    """What each adds, largest first, with all that makes the sum whole."""
    first = list(parts.items())[:_NAMES]
    rest = sum(parts.values()) - sum(value for _, value in first)
    if title == "parameter":
        rest += culprit.others
    lines = [*first, ("all others", rest)] if abs(rest) > 1e-6 * abs(culprit.spread) else first
    if abs(culprit.remainder) > 1e-3 * abs(culprit.spread):
        lines.append(("left over", culprit.remainder))
    rows = [(name, number(value), percent(value / culprit.spread)) for name, value in lines]
    values = [value for _, value in lines]
    whole = sum(values) / culprit.spread
    rows.append(("in all", number(sum(values)), percent(1.0 if abs(whole - 1) < 1e-3 else whole)))
    return Grid((title, "nats", "share"), tuple(rows), bars=(*values, 0.0))


def _finite(value: float) -> str:
    return number(value) if math.isfinite(value) else "not finite"


def _times(value: float) -> str:
    return number(value) if math.isfinite(value) else ""
