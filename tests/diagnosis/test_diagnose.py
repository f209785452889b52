"""Runs that were spoiled on purpose: the step and the cause are found from their records alone."""

import pytest
from spoiled_runs import SPOILED, train

from stepguard.diagnosis import diagnose
from stepguard.records import read_runs

SEEDS = {"observe": 0, "clamp": 1}
AGAIN = [pytest.param(action, marks=pytest.mark.slow) for action in SEEDS]
"""The other action; by default each run has its own."""


@pytest.mark.filterwarnings("ignore:stepguard. step .* softmax collapse is near")  # as it is, in many of them
@pytest.mark.parametrize("action", [None, *AGAIN])
@pytest.mark.parametrize("name", SPOILED)
def test_step_and_cause_are_found(name, action, tmp_path):
    spoiled = SPOILED[name]
    action = action or spoiled.action
    train(tmp_path, SEEDS[action], spoiled, action)
    (run,) = read_runs(tmp_path)
    found = diagnose(run)
    assert found.cause == spoiled.cause
    if spoiled.step is None:
        assert found.step is None
    else:
        assert spoiled.step <= found.step <= spoiled.step + spoiled.within


@pytest.mark.filterwarnings("ignore:stepguard. step .* softmax collapse is near")
def test_it_says_when_the_cause_set_in_and_what_r_is_made_of(tmp_path):
    train(tmp_path, 0, SPOILED["the learning rate jumps a hundredfold and stays"])
    (run,) = read_runs(tmp_path)
    main = diagnose(run).main
    assert main.began == main.step == 120 and main.serious and main.certain
    assert sum(factor.share for factor in main.factors) == pytest.approx(1)
    rate = next(factor for factor in main.factors if factor.name == "learning rate")
    assert rate.times == pytest.approx(100) and rate.share > 0.8
    assert main.evidence == ("the learning rate went from 0.02 to 2 at once, 100 times as large",)
    assert main.culprits and main.culprits[0].r == max(culprit.r for culprit in main.culprits)
