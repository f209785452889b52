"""A run that its guard kept from what would have spoiled it."""

import math

import pytest
from by_hand import run_of

from stepguard.diagnosis import post_mortem

AT = 60


def spike(scale, **values):
    return run_of(lambda now, v: {"lr": 3.0, "tau": 3.0, "scale": scale, **values} if now == AT else None)


RUNS = {
    "let through": (spike(1.0), False),
    "shortened to the target": (spike(1 / 6), True),
    "shortened, but not enough": (spike(1 / 2), False),
    "not finite, and withheld": (spike(0.0, gradient_norm=math.inf, tau=math.nan), True),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_spoiled_unless_every_step_was_kept_to_the_target(name):
    run, kept = RUNS[name]
    found = post_mortem(run)
    assert found.diagnosis.step == AT and (found.kept, found.spoiled) == (kept, not kept)
    assert ("The guard shortened 1 step; none was made beyond the target." in found.verdict) == kept


def test_weights_that_something_else_has_changed_are_not_kept_by_shorter_steps():
    found = post_mortem(
        run_of(lambda now, v: {"weight_norm": 200.0, "sensitivity": 20.0, "scale": 0.4} if now >= AT else None)
    )
    assert found.cause == "weight blow-up" and found.spoiled and not found.kept


def test_a_healthy_run_is_neither():
    found = post_mortem(run_of())
    assert not found.spoiled and not found.kept
