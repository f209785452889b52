"""Runs that go wrong, kept aside: nobody who writes the rules of a diagnosis looks at them, it is judged by them."""

from aside_batches import LABELS, OUTLIERS
from aside_healthy import HEALTHY
from aside_inputs import NOT_FINITE, SMALLER, UNUSUAL
from aside_rates import JUMPS, RAMPS, RESTARTS
from aside_scenario import Scenario
from aside_softmax import SOFTMAX
from aside_states import MOMENTUM, OPTIMIZER, WEIGHTS

ASIDE: dict[str, Scenario] = {
    **{**JUMPS, **RAMPS, **RESTARTS},
    **{**LABELS, **OUTLIERS, **UNUSUAL, **SMALLER, **NOT_FINITE},
    **{**MOMENTUM, **WEIGHTS, **OPTIMIZER, **SOFTMAX},
    **HEALTHY,
}
