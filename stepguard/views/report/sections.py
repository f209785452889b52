"""A post-mortem in sections, each only where there is something to say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.verdict import sentence
from stepguard.views.report.blocks import Block, Chart, Facts, Grid, Items, Section, Verdict
from stepguard.views.report.cause import what_changed, where_from
from stepguard.views.report.facts import facts
from stepguard.views.report.limits import the_cost, the_rate, the_softmax
from stepguard.views.report.steps import other_targets, what_was_done
from stepguard.views.report.wording import counted, number

_FINDINGS = 20


def sections(post: PostMortem) -> list[Section]:
    """All there is to say of a run, in the order in which it is told."""
    found = [
        Section(f"Run {post.about.name}", _first(post)),
        *_advice(post),
        *what_changed(post),
        *where_from(post),
        *what_was_done(post),
        *other_targets(post),
        *the_softmax(post),
        *the_rate(post),
        *the_cost(post),
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
                f"{post.cause}, kept" if post.kept else post.cause,
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
    blocks: list[Block] = [Verdict(post.verdict, post.spoiled), Facts(facts(post))]
    if post.done and post.done.asked:
        blocks.append(Chart("r"))
    return tuple(blocks)


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
