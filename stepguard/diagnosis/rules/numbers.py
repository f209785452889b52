from __future__ import annotations

import math

from stepguard.diagnosis.case import Case
from stepguard.diagnosis.causes import NOT_FINITE
from stepguard.diagnosis.rules.found import Found


def not_finite(case: Case) -> Found | None:
    """The step was not a number where those before it were."""
    if math.isfinite(case.now("r")):
        return None
    what = {
        "input_norm_max": "an input of the batch",
        "weights": "a weight, before the step already",
        "loss": "the loss",
        "gradient": "a gradient",
        "tau": "the update itself",
    }
    seen = [words for name, words in what.items() if _is_broken(case, name)]
    said = f"not a finite number: {', '.join(seen)}" if seen else "the change of the logits is not a finite number"
    return Found(NOT_FINITE, case.step, (said,))


def _is_broken(case: Case, name: str) -> bool:
    """Whether it is nan or infinite here, and not only unknown, as it then was before."""
    now = case.now(name)
    return math.isinf(now) or (math.isnan(now) and not math.isnan(case.usual(name)))
