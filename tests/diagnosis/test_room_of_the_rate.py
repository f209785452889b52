"""How far the learning rate could have gone."""

import math

import pytest
from made_up_runs import jumped, reading, run_of

from stepguard.diagnosis import diagnose
from stepguard.diagnosis.headroom import headroom
from stepguard.diagnosis.track import track_of


def room(run):
    return headroom(track_of(run), diagnose(run))


def test_a_steady_r_of_a_quarter_leaves_room_for_four_times_as_much():
    found = room(run_of([reading(s, 0.25) for s in range(120)]))
    assert len(found.phases) == 6 and found.left_out == 0 and found.until is None
    assert [(p.lr, p.times, p.borne) for p in found.phases] == [(0.1, 4.0, 0.4)] * 6
    assert (found.phases[0].first, found.phases[-1].last) == (0, 119)


def test_each_part_of_a_run_has_its_own():
    found = room(run_of([reading(s, 0.25 if s < 60 else 0.5, lr=0.1 if s < 60 else 0.2) for s in range(120)]))
    assert [(p.lr, p.times) for p in found.phases] == [(0.1, 4.0)] * 3 + [(0.2, 2.0)] * 3


def test_one_reading_in_twenty_may_be_beyond():
    one = room(run_of([reading(s, 0.9 if s % 33 == 16 else 0.1) for s in range(200)]))
    assert [p.times for p in one.phases] == pytest.approx([10.0] * 6)  # one in each 33
    two = room(run_of([reading(s, 0.9 if s % 33 in (10, 20) else 0.1) for s in range(200)]))
    assert all(1 / 0.9 < p.times < 10 for p in two.phases)


def test_what_was_let_through_ends_what_can_be_said():
    found = room(jumped("observe"))
    assert found.until == 40 and found.phases[-1].last < 40 and found.left_out == 20


def test_a_step_that_was_shortened_is_left_out_and_the_rest_counts():
    found = room(jumped("clamp"))
    assert found.until is None and found.left_out == 1 and found.phases[-1].last == 59


NOTHING = {
    "too few readings": [reading(s) for s in range(9)],
    "no learning rate": [reading(s, lr=0.0) for s in range(50)],
    "no target": [reading(s, target=math.nan) for s in range(50)],
    "nothing moved": [reading(s, r=0.0) for s in range(50)],
}


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_can_be_said(case):
    assert room(run_of(NOTHING[case])) is None
