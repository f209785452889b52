from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepguard.diagnosis import PostMortem
from stepguard.views.report.told import Told

VERSION = 1
"""Of the keys; new ones do not change it, another meaning of one does."""
_MANY = 100
"""Findings beyond which only the serious ones and the largest are told in full."""


def as_json(told: Sequence[Told]) -> str:
    """The post-mortem of runs for scripts: the same numbers as everywhere, with keys that stay."""
    return json.dumps(
        {"stepguard_report": VERSION, "runs": [as_dict(each.post) for each in told]}, indent=2, allow_nan=False
    )


def as_dict(post: PostMortem) -> dict[str, Any]:
    """A post-mortem as plain values; what is not known is None, what is infinite ``"inf"``.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.diagnosis import post_mortem
        >>> from stepguard.records import Reading, Run
        >>> run = Run(Path("stepguard.jsonl"), "one")
        >>> run.readings.append(Reading(3, 0.5, 0.5, 1.0, 1.6, 1.0, 0.1, 0.1, target=1.0))
        >>> found = as_dict(post_mortem(run))
        >>> found["name"], found["cause"], found["step"], found["done"]["asked"]
        ('one', 'healthy', None, {'step': 3, 'r': 0.5})
    """
    main = post.diagnosis.main
    plain = {
        "name": post.about.name,
        "cause": post.cause,
        "spoiled": post.spoiled,
        "kept": post.kept,
        "verdict": post.verdict,
        **{key: getattr(main, key, None) for key in ("step", "began", "worst", "r", "last", "beyond")},
        "time": post.time,
        "logged_step": post.logged_step,
        **{key: list(getattr(main, key, ())) for key in ("evidence", "factors", "culprits")},
        "about": post.about,
        "around": post.around,
        "done": post.done,
        "targets": post.targets,
        "softmax": post.softmax,
        "headroom": post.headroom,
        "cost": post.cost,
        "advice": post.advice,
        "findings": _findings(post),
        "findings_in_all": len(post.diagnosis.findings),
    }
    found: dict[str, Any] = _plain(plain)
    return found


def _findings(post: PostMortem) -> list[Any]:
    findings = post.diagnosis.findings
    kept = sorted(findings, key=lambda f: (not f.serious, -(f.r if math.isfinite(f.r) else math.inf)))[:_MANY]
    return sorted(kept, key=lambda f: f.step)


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
