"""Runs that go wrong, kept aside: nobody who writes the rules of a diagnosis looks at them, it is judged by them."""

from aside_rates import JUMPS, RAMPS, RESTARTS
from aside_scenario import Scenario

ASIDE: dict[str, Scenario] = {**JUMPS, **RAMPS, **RESTARTS}
