"""What an event of kind culprit says in numbers, as the page draws it: signed parts that add up to the spread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from stepguard.records import Culprit, Event

MOST = 8
"""Bars of a kind; all smaller parts are one."""
_WORTH_SAYING = 5e-4
"""Share of the spread from which on a remainder has a bar."""


def parts(event: Event) -> dict[str, Any] | None:
    """Where the r of a breach comes from; None if the event does not tell it in numbers.

    Each of ``layers``, ``groups`` and ``parameters`` is a list of ``[name, nats]`` with the sum ``spread``, up to a
    remainder that nobody could see; ``groups`` is empty where there is but one.

    Example:
        >>> from stepguard.records import Culprit
        >>> culprit = Culprit(3, r=2.0, spread=6.28, sample=5, position=[0, 5], softmax="cross_entropy of GPT",
        ...                   rising=1, falling=0, parameters={"head.weight": 6.5, "embed.weight": -0.22})
        >>> parts(culprit.event())["parameters"]
        [('head.weight', 6.5), ('embed.weight', -0.22)]
    """
    culprit = Culprit.of(event)
    if culprit is None:
        return None
    values = [culprit.spread, culprit.others, culprit.remainder]
    for named in (culprit.layers, culprit.groups, culprit.parameters):
        values += (named or {}).values()
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values) or culprit.spread <= 0:
        return None
    groups = culprit.groups or {}
    return {
        "spread": culprit.spread,
        "facts": _facts(culprit),
        "layers": _bars(culprit.layers or {}, 0.0, culprit),
        "groups": _bars(groups, 0.0, culprit) if len(groups) > 1 else [],
        "parameters": _bars(culprit.parameters or {}, culprit.others, culprit),
    }


def _bars(named: Mapping[str, float], others: float, culprit: Culprit) -> list[tuple[str, float]]:
    if not named:
        return []
    ordered = sorted(named.items(), key=lambda item: -abs(item[1]))
    rest = sum(value for _, value in ordered[MOST:]) + others
    bars = ordered[:MOST]
    if rest:
        bars.append(("all others", rest))
    if abs(culprit.remainder) > _WORTH_SAYING * culprit.spread:
        bars.append(("left over", culprit.remainder))
    return bars


def _facts(culprit: Culprit) -> list[tuple[str, str]]:
    place = f" at ({', '.join(map(str, culprit.position))})" if len(culprit.position) > 1 else ""
    facts = [("sample", f"{culprit.sample}{place}")]
    if culprit.batches > 1:
        facts.append(("micro-batch", f"{culprit.batch + 1} of {culprit.batches}"))
    if culprit.rank is not None:
        facts.append(("rank", str(culprit.rank)))
    facts.append(("classes", f"{culprit.rising} rises over {culprit.falling}"))
    if culprit.label is not None:
        facts.append(("label", str(culprit.label)))
    return [*facts, ("softmax", culprit.softmax)]
