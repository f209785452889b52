import io
import math

import pytest
from rich.console import Console
from views.frames import Frame, clamped, reading

from stepguard.records import Event
from stepguard.views.spike.summary import Outcome, closing_table, median_outcome, outcome


def test_outcome_of_a_run_by_hand():
    accuracies = [50.0, 60.0, 30.0, 20.0, 70.0]
    frames = [clamped(step, 2.0 + step, accuracy=accuracy) for step, accuracy in enumerate(accuracies)]
    frames[1] = Frame(1, accuracy=60.0, reading=reading(1, 1.5))
    assert outcome(frames, spike_start=2) == Outcome(before=60.0, lowest=20.0, final=70.0, largest_r=1.5, unmeasured=0)


def test_before_and_lowest_are_missing_where_the_run_was_not():
    assert outcome([Frame(0)], spike_start=0).before is None
    assert outcome([Frame(0)], spike_start=1).lowest is None


def test_a_step_taken_beyond_all_numbers_is_the_largest():
    frames = [Frame(0, reading=reading(0, 3.0)), Frame(1, reading=reading(1, math.nan))]
    assert outcome(frames, 0).largest_r == math.inf


def test_unmeasured_steps_make_the_largest_r_a_lower_bound():
    frames = [Frame(0, reading=reading(0, 3.0)), Frame(1, events=(Event(1, "unmeasured", "no"),))]
    assert shown({"plain": outcome(frames, 0)}).split()[-1] == "3" and ">= 3" in shown({"plain": outcome(frames, 0)})


def test_nothing_measured_is_no_number():
    assert shown({"plain": outcome([Frame(0)], 0)}).split()[-1] == "-"


def test_median_over_seeds_but_the_largest_r_of_all():
    seeds = [Outcome(80.0, 10.0, 20.0, 5.0, 0), Outcome(90.0, 30.0, 40.0, 1.0, 0), Outcome(85.0, 20.0, 90.0, 9.0, 2)]
    assert median_outcome(seeds) == Outcome(85.0, 20.0, 40.0, 9.0, 2)
    assert median_outcome([Outcome(None, None, 1.0, 1.0, 0)]).before is None


@pytest.mark.parametrize("value, text", [(None, "-"), (12.34, "12.3")])
def test_accuracies_in_the_table(value, text):
    assert text in shown({"plain": Outcome(value, value, 50.0, 1.0, 0)})


def shown(rows):
    out = io.StringIO()
    Console(file=out, width=80).print(closing_table(rows, ""))
    return out.getvalue()
