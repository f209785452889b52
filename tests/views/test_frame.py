import math

import pytest
from views.frames import Frame, clamped, reading

from stepguard.views.frame import lr_applied, r_asked, r_taken


def test_a_clamped_step_is_asked_for_and_taken():
    frame = clamped(0, 8.0)
    assert (r_asked(frame), r_taken(frame)) == (8.0, 1.0)
    assert lr_applied(frame) == pytest.approx(0.1 / 8)


def test_a_withheld_step_took_nothing_however_large_it_was():
    for r in (math.inf, math.nan):
        assert r_taken(Frame(0, reading=reading(0, r, scale=0.0))) == 0.0


def test_what_was_not_measured_is_not_a_number_and_stands_as_asked():
    assert math.isnan(r_asked(Frame(0))) and math.isnan(r_taken(Frame(0)))
    assert lr_applied(Frame(0)) == 0.1
