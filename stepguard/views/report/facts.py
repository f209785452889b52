from __future__ import annotations

import math

from stepguard.diagnosis import PostMortem
from stepguard.diagnosis.about import About
from stepguard.views.report.wording import also, counted, when
from stepguard.views.words import span

_NOTICES = 5


def facts(post: PostMortem) -> tuple[tuple[str, str], ...]:
    """Which run it is: names, and what they are."""
    return (*_when(post), *_of_the_run(post.about))


def _when(post: PostMortem) -> list[tuple[str, str]]:
    main = post.diagnosis.main
    if main is None or post.time is None:
        return []
    elsewhere = post.logged_step is not None and post.logged_step != main.step
    logged = f"; step {post.logged_step:,} in the trainer's own log" if elsewhere else ""
    return [(f"step {main.step:,}", f"{when(post.time)}{logged}")]


def _of_the_run(about: About) -> list[tuple[str, str]]:
    found = []
    if about.model:
        size = f", {counted(about.parameters, 'parameter')}" if about.parameters else ""
        found.append(("model", f"{about.model}{size}"))
    if about.optimizer:
        settings = [f"{name} {_setting(value)}" for name, value in about.hyper.items()]
        more = f" (the first of {about.groups} groups)" if about.groups > 1 else ""
        found.append(("optimizer", ", ".join([about.optimizer, *settings]) + more))
    if about.action or math.isfinite(about.target):
        target = f" at a target of {about.target:g}" if math.isfinite(about.target) else ""
        cadence = f", cadence {about.cadence}" if about.cadence else ""
        found.append(("guard", f"{about.action or 'unknown'}{target}{cadence}"))
    found.append(
        ("steps", f"{about.steps:,}, from {about.first:,} to {about.last:,}; {about.measured:,} of them measured")
        if about.steps
        else ("steps", "none")
    )
    if about.began is not None:
        found.append(("began", f"{when(about.began)}, and wrote for {span(about.seconds)}"))
    found.append(("state", _STATES[about.state]))
    if about.resumed:
        steps = also([f"{step:,}" for step in about.resumed[:5]])
        found.append(("processes", f"{len(about.resumed) + 1}; new ones went on at {steps}"))
    for step, name, before, now in about.changed[:_NOTICES]:
        found.append(("changed", f"{name} from {before:g} to {now:g}, at about step {step:,}"))
    if about.world_size > 1:
        found.append(("ranks", f"{about.world_size}"))
    found.append(("records", about.path))
    found += [("notice", notice) for notice in about.notices[:_NOTICES]]
    if len(about.notices) > _NOTICES:
        found.append(("notice", f"and {len(about.notices) - _NOTICES:,} more"))
    return found


_STATES = {
    "ended": "ended",
    "unfinished": "has not said that it is over: it goes on, or was killed",
    "unknown": "not told by its records",
}


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_setting(each) for each in value)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else f"{value}"
