"""What other targets would have done: counted by hand."""

import math

import pytest
from made_up_runs import START, reading, run_of

from stepguard.diagnosis.about import about
from stepguard.diagnosis.targets import other_targets
from stepguard.diagnosis.track import track_of

RS = [0.1, 0.3, 0.6, 1.5, 3.0, 8.0]
BEYOND = {0.25: 5, 0.5: 4, 1.0: 3, 2.0: 2, 4.0: 1}
FACTOR = {4.0: 4 / 8, 2.0: (2 / 3 + 2 / 8) / 2, 1.0: (1 / 1.5 + 1 / 3 + 1 / 8) / 3}


def targets_of(run):
    return {found.target: found for found in other_targets(track_of(run), about(run))}


@pytest.mark.parametrize("target", BEYOND)
def test_steps_beyond_a_target_are_counted(target):
    found = targets_of(run_of([reading(step, r) for step, r in enumerate(RS)]))[target]
    assert (found.beyond, found.share) == (BEYOND[target], BEYOND[target] / 6)
    assert found.own == (target == 1.0)


@pytest.mark.parametrize("target", FACTOR)
def test_their_factor_is_target_over_r_on_average(target):
    found = targets_of(run_of([reading(step, r) for step, r in enumerate(RS)]))[target]
    assert found.factor == pytest.approx(FACTOR[target])


def test_an_r_at_the_target_is_not_beyond_it():
    assert targets_of(run_of([reading(0, 1.0)]))[1.0].beyond == 0


def test_what_is_not_finite_is_beyond_any_and_would_not_be_made():
    found = targets_of(run_of([reading(0, math.nan), reading(1, math.inf)]))
    assert {t.beyond for t in found.values()} == {2} and {t.factor for t in found.values()} == {0.0}


def test_where_nothing_is_beyond_there_is_no_factor():
    assert math.isnan(targets_of(run_of([reading(0, 0.1)]))[1.0].factor)


def test_steps_that_were_not_measured_count_as_below():
    found = targets_of(run_of([reading(0, 0.3), reading(99, 8.0)]))
    assert found[4.0].share == 0.01 and found[0.25].share == 0.02


def test_the_runs_own_target_is_among_them():
    found = targets_of(run_of([reading(step, r, target=0.7) for step, r in enumerate(RS)]))
    assert list(found) == [0.25, 0.5, 0.7, 1.0, 2.0, 4.0] and found[0.7].own and not found[1.0].own
    assert found[0.7].beyond == 3


BLIND = {
    "every step measured": ("auto", 1, 2.0, []),
    "auto looks where r may pass a quarter of the target": ("auto", 10, 2.0, [0.25]),
    "auto at a small target": ("auto", 10, 1.0, []),
    "every tenth step": ("10", 10, 1.0, [0.25, 0.5, 1.0, 2.0, 4.0]),
}


@pytest.mark.parametrize("case", BLIND)
def test_it_says_where_there_may_have_been_more(case):
    cadence, every, own, blind = BLIND[case]
    start = {**START, "settings": {"cadence": cadence}}
    found = targets_of(run_of([reading(every * i, 0.1, target=own) for i in range(9)], start=start))
    assert [target for target, other in found.items() if other.at_least] == blind


def test_a_run_without_readings_has_none():
    assert targets_of(run_of()) == {}
