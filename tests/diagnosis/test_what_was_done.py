"""What the guard did, of made up runs whose steps are known one by one."""

import math

import pytest
from made_up_runs import reading, run_of

from stepguard.diagnosis.done import Peak, done
from stepguard.diagnosis.track import track_of
from stepguard.records import Event

NAN = math.nan
COUNTS = {
    "let through": ([reading(0, 3.0)], {"beyond": 1, "let_through": 1}),
    "shortened": ([reading(0, 3.0, scale=0.3)], {"beyond": 1, "shortened": 1, "longest_held": 1}),
    "withheld": ([reading(0, NAN, scale=0.0)], {"beyond": 1, "withheld": 1, "not_finite": 1}),
    "driven": ([reading(0, 0.1, scale=10.0)], {"lengthened": 1}),
    "calm": ([reading(0, 0.1)], {}),
    "shortened by a prediction": ([reading(0, 0.9, scale=0.5)], {"shortened": 1, "longest_held": 1}),
}
ZERO = ("beyond", "let_through", "shortened", "lengthened", "withheld", "not_finite", "longest_held", "skipped")


def done_of(run):
    return done(run, track_of(run))


@pytest.mark.parametrize("case", COUNTS)
def test_each_step_is_counted_as_what_it_was(case):
    readings, expected = COUNTS[case]
    found = done_of(run_of(readings))
    assert {name: getattr(found, name) for name in ZERO} == dict.fromkeys(ZERO, 0) | expected


def test_the_largest_that_was_asked_for_and_the_largest_that_was_made():
    found = done_of(run_of([reading(0, 0.8), reading(1, 5.0, scale=0.1), reading(2, NAN, scale=0.0)]))
    assert found.asked == Peak(1, 5.0) and found.made == Peak(0, 0.8)
    assert found.shortest == 0.1


def test_steps_in_a_row_that_were_shortened():
    at = [3, 4, 5, 9, 10]
    found = done_of(run_of([reading(s, 2.0, scale=0.5 if s in at else 1.0) for s in range(12)]))
    assert (found.shortened, found.longest_held) == (5, 3)


def test_events_are_counted_that_have_no_reading():
    events = [Event(1, "skipped", ""), Event(2, "unmeasured", ""), Event(3, "unmeasured", "")]
    found = done_of(run_of(events=events))
    assert (found.measured, found.skipped, found.unmeasured, found.asked) == (0, 1, 2, None)


def test_perp_grad_was_on_from_where_to_where():
    kinds = {5: "cure_on", 9: "cure_off", 20: "cure_on"}
    found = done_of(run_of([reading(0)], [Event(step, kind, "") for step, kind in kinds.items()]))
    assert found.cures == ((5, 9), (20, None))


SAID = "step 10: r = 0.5 will pass the target of 1 at about step 30, if it goes on as it does"
FORECASTS = {
    "it came, a little late": ([35], 99, (35, True)),
    "it came much later": ([80], 99, (None, True)),
    "it did not come": ([], 99, (None, True)),
    "what was beyond before does not count": ([5], 99, (None, True)),
    "the run has not come so far": ([], 25, (None, False)),
}


@pytest.mark.parametrize("case", FORECASTS)
def test_a_forecast_is_held_against_what_came(case):
    beyond, last, expected = FORECASTS[case]
    readings = [reading(s, 2.0 if s in beyond else 0.3) for s in range(last + 1)]
    (found,) = done_of(run_of(readings, [Event(10, "forecast", SAID)])).forecasts
    assert (found.step, found.crossing) == (10, 30) and (found.came, found.over) == expected


def test_a_guard_that_had_nothing_to_do_with():
    assert done_of(run_of()) is None
