"""A post-mortem in sections, each only where there is something to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.about import About
from stepguard.diagnosis.verdict import sentence
from stepguard.views.report.blocks import Block, Chart, Facts, Grid, Items, Section, Verdict
from stepguard.views.report.cause import what_changed, where_from
from stepguard.views.report.limits import the_cost, the_rate, the_softmax
from stepguard.views.report.steps import other_targets, what_was_done
from stepguard.views.report.wording import also, counted, number, when
from stepguard.views.words import span

_FINDINGS = 20
_NOTICES = 5


def sections(post: PostMortem) -> list[Section]:
    """All there is to say of a run, in the order in which it is told."""
    found = [
        Section(f"Run {post.about.name}", _first(post)),
        *what_changed(post),
        *where_from(post),
        *what_was_done(post),
        *other_targets(post),
        *the_softmax(post),
        *the_rate(post),
        *the_cost(post),
        *_advice(post),
        *_findings(post),
    ]
    return [section for section in found if section.blocks]


def summary(posts: Sequence[PostMortem]) -> Section:
    """Several runs, each in a line."""
    rows = []
    for post in posts:
        main, done = post.diagnosis.main, post.done
        rows.append(
            (
                post.about.name,
                post.cause,
                f"{main.step:,}" if main else "",
                number(done.asked.r) if done and done.asked else "",
                f"{post.about.target:g}" if math.isfinite(post.about.target) else "",
                f"{done.beyond:,}" if done else "",
                f"{post.about.steps:,}",
            )
        )
    headings = ("run", "cause", "at step", "largest r", "target", "beyond", "steps")
    spoiled = sum(post.spoiled for post in posts)
    title = f"{counted(len(posts), 'run')}, {spoiled:,} of them spoiled"
    return Section(title, (Grid(headings, tuple(rows), words=2),))


def _first(post: PostMortem) -> tuple[Block, ...]:
    blocks: list[Block] = [Verdict(post.verdict, post.spoiled), Facts((*_when(post), *_facts(post.about)))]
    if post.done and post.done.asked:
        blocks.append(Chart("r"))
    return tuple(blocks)


def _when(post: PostMortem) -> list[tuple[str, str]]:
    main = post.diagnosis.main
    if main is None or post.time is None:
        return []
    elsewhere = post.logged_step is not None and post.logged_step != main.step
    logged = f"; step {post.logged_step:,} in the trainer's own log" if elsewhere else ""
    return [(f"step {main.step:,}", f"{when(post.time)}{logged}")]


def _facts(about: About) -> list[tuple[str, str]]:
    facts = []
    if about.model:
        size = f", {counted(about.parameters, 'parameter')}" if about.parameters else ""
        facts.append(("model", f"{about.model}{size}"))
    if about.optimizer:
        settings = [f"{name} {_setting(value)}" for name, value in about.hyper.items()]
        more = f" (the first of {about.groups} groups)" if about.groups > 1 else ""
        facts.append(("optimizer", ", ".join([about.optimizer, *settings]) + more))
    if about.action or math.isfinite(about.target):
        target = f" at a target of {about.target:g}" if math.isfinite(about.target) else ""
        cadence = f", cadence {about.cadence}" if about.cadence else ""
        facts.append(("guard", f"{about.action or 'unknown'}{target}{cadence}"))
    facts.append(
        ("steps", f"{about.steps:,}, from {about.first:,} to {about.last:,}; {about.measured:,} of them measured")
        if about.steps
        else ("steps", "none")
    )
    if about.began is not None:
        facts.append(("began", f"{when(about.began)}, and wrote for {span(about.seconds)}"))
    facts.append(("state", _STATES[about.state]))
    if about.resumed:
        steps = also([f"{step:,}" for step in about.resumed[:5]])
        facts.append(("processes", f"{len(about.resumed) + 1}; new ones went on at {steps}"))
    for step, name, before, now in about.changed[:_NOTICES]:
        facts.append(("changed", f"{name} from {before:g} to {now:g}, at about step {step:,}"))
    if about.world_size > 1:
        facts.append(("ranks", f"{about.world_size}"))
    facts.append(("records", about.path))
    facts += [("notice", notice) for notice in about.notices[:_NOTICES]]
    if len(about.notices) > _NOTICES:
        facts.append(("notice", f"and {len(about.notices) - _NOTICES:,} more"))
    return facts


_STATES = {
    "ended": "ended",
    "unfinished": "has not said that it is over: it goes on, or was killed",
    "unknown": "not told by its records",
}


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_setting(each) for each in value)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{value}"


def _advice(post: PostMortem) -> list[Section]:
    pairs = tuple((sentence(item.do), sentence(item.because)) for item in post.advice)
    return [Section("What to do", (Items(pairs),))] if pairs else []


def _findings(post: PostMortem) -> list[Section]:
    findings = post.diagnosis.findings
    # The serious ones and the largest, in the order of steps.
    kept = sorted(findings, key=lambda f: (not f.serious, -(f.r if math.isfinite(f.r) else math.inf)))[:_FINDINGS]
    rows = [
        (
            f"{f.step:,}" + (f" to {f.last:,}" if f.last != f.step else ""),
            f.cause,
            "serious" if f.serious else "brief",
            f"{f.began:,}",
            number(f.r) if math.isfinite(f.r) else "",
            f"{f.target:g}" if math.isfinite(f.target) else "",
            f"{f.beyond:,}",
        )
        for f in sorted(kept, key=lambda f: f.step)
    ]
    if not rows:
        return []
    grid = Grid(("steps", "cause", "", "began", "largest r", "target", "beyond"), tuple(rows), words=3)
    left = len(findings) - len(rows)
    title = "All that was found" if not left else f"The {len(rows)} gravest of {len(findings):,} findings"
    return [Section(title, (grid,))]
