"""More runs that go wrong, seen by nobody who wrote a rule: ``python tests/diagnosis/unseen.py [part of a name]``."""

import sys

import torch
from aside_scenario import Scenario
from aside_table import table
from unseen_batches import LABELS, NOT_FINITE, OTHERS, OUTLIERS
from unseen_healthy import HEALTHY
from unseen_rates import JUMPS, RAMPS, RESTARTS
from unseen_states import MOMENTS, MOMENTUM, SOFTMAX, WEIGHTS

UNSEEN: dict[str, Scenario] = {
    **{**JUMPS, **RAMPS, **RESTARTS},
    **{**LABELS, **OUTLIERS, **NOT_FINITE, **OTHERS},
    **{**MOMENTUM, **WEIGHTS, **MOMENTS, **SOFTMAX},
    **HEALTHY,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    table(*sys.argv[1:2], seeds=int(sys.argv[2]) if sys.argv[2:] else 2, runs=UNSEEN)
