"""Runs that others spoiled, in other models and by other means; those of ``unseen`` after the rules were written."""

import pytest
from aside import ASIDE
from aside_table import START_UP
from unseen import UNSEEN

from stepguard.diagnosis import diagnose
from stepguard.records import read_runs

ALIKE = {
    ("optimizer state", "warm restart"): "moments that are lost from one process to the next are both",
    ("warm restart", "optimizer state"): "likewise",
}
ANOTHER_SEED = {"momentum raised to 0.999 on labels of which some are wrong": 1}
"""Where the first is not as it is meant: r comes too late."""
NOT_TOLD = {
    "a triangle of the rate that goes up to 6": "r passes its target once in a while, by little",
    "wine in batches of 59: one sample is left": "among the first steps, by little",
    "negative images, three batches": "their norm is that of others, so the labels are taken to be wrong",
    "a batch of nothing but one token": "tokens have no norm, so the labels are taken to be wrong",
    "Adam after a long stretch of padding, its second moment forgotten": "the gradient is larger as well",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ASIDE, *UNSEEN])
def test_step_and_cause_are_found_of_runs_kept_aside(name, tmp_path):
    if name in NOT_TOLD:
        pytest.xfail(NOT_TOLD[name])
    scenario = (ASIDE | UNSEEN)[name]
    scenario.run(tmp_path, ANOTHER_SEED.get(name, 0))
    (run,) = read_runs(tmp_path)
    found = diagnose(run)
    assert found.cause == scenario.cause or (scenario.cause, found.cause) in ALIKE
    if scenario.step is not None:
        earliest = scenario.step if scenario.step < START_UP else max(scenario.step, START_UP)
        assert earliest <= found.step <= scenario.step + scenario.tolerance
