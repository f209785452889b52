from __future__ import annotations

from typing import Any

import numpy as np

from stepguard.diagnosis.track import Numbers
from stepguard.records import Rows


def column(rows: Rows[Any], name: str) -> Numbers:
    """One field of all readings as an array; nan for None.

    Example:
        >>> from stepguard.records import Reading
        >>> rows = Rows(Reading)
        >>> rows.append(Reading(3, 2.0, 4.0, 2.0, 6.28, 0.5, 0.1, 0.05, target=1.0))
        >>> column(rows, "r"), column(rows, "loss")
        (array([2.]), array([nan]))
    """
    return np.array(list(rows.columns[name]), dtype=np.float64)


def last_known(values: Numbers) -> float:
    """The last that is a number; nan if there is none."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")
