"""Columns of numbers and what is kept by step hold what a list and a dict would, in less memory."""

import math
import random

import numpy as np
import pytest

from stepguard.records import Reading, Rows
from stepguard.records.by_step import ByStep
from stepguard.records.columns import Numbers

PARTS = {
    "numbers": ("d", [[1.5, 2.0], [3.25]]),
    "whole numbers": ("q", [[1, 2], [-(2**62)]]),
    "None among them": ("d", [[1.5, None], [2.5, None, 3.5]]),
    "None first": ("q", [[None, None], [1, 2]]),
    "None last": ("d", [[1.5, 2.5], [None]]),
    "None in the middle": ("q", [[1], [None], [2]]),
    "nothing else": ("d", [[None], [None, None]]),
    "nothing at all": ("d", [[], []]),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_column_is_what_a_list_would_be(case):
    code, parts = PARTS[case]
    column, want = Numbers(code), []
    for part in parts:
        column.extend(Numbers(code, part))
        want += part
        assert column == want and list(column) == want and repr(column) == repr(want) and len(column) == len(want)
    for index in range(-len(want), len(want)):
        assert column[index] == want[index] and type(column[index]) is type(want[index])
    for part in (slice(1, None), slice(None, None, -1), slice(-2, None), slice(9, 12)):
        assert column[part] == want[part]
    floats = np.frombuffer(column.floats(1)) if len(want) > 1 else np.empty(0)
    np.testing.assert_array_equal(floats, np.array(want[1:], dtype=float))
    np.testing.assert_array_equal(np.array(column, dtype=float), np.array(want, dtype=float))
    assert np.array(column).dtype == (int if code == "q" and None not in want else float)
    seen = np.asarray(column)
    column.cut(1)
    column.extend(Numbers(code, [7]))  # which it still can, while somebody holds the array
    assert len(seen) == len(want)
    assert column == [*want[:1], 7] and len(column._none) in (0, len(column))


def test_numbers_that_json_does_not_have_are_numbers_and_not_none():
    column = Numbers("d", ["inf", "-inf", "nan", None])
    assert column[:2] == [math.inf, -math.inf] and math.isnan(column[2]) and column[3] is None


NOT_NUMBERS = {
    "a word": ("d", ["much"], ValueError),
    "a list": ("d", [[1.0]], TypeError),
    "a half where a whole number should be": ("q", [0.5], TypeError),
    "a word where a whole number should be": ("q", ["1"], TypeError),
    "more than fits": ("q", [2**63], OverflowError),
}


@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_what_is_no_number_is_refused(case):
    code, values, error = NOT_NUMBERS[case]
    with pytest.raises(error):
        Numbers(code, values)


def test_a_million_readings_take_what_their_numbers_take():
    row = Reading(3, r=2.0, tau=4.0, rho=2.0, spread=6.28, scale=0.5, lr=0.1, lr_applied=0.05, target=1.0)
    rows = Rows(Reading, [row] * 1000)
    for column in rows.columns.values():
        if isinstance(column, Numbers):
            assert column._values.itemsize == 8 and len(column._values) == 1000
    assert rows.columns["estimator"][0] is rows.columns["estimator"][-1]


def blocks(seed):
    """Steps as they come: mostly in order, now and then an earlier one or the same again, and a run that goes back."""
    draw, step = random.Random(seed), 0
    for _ in range(60):
        steps = []
        for _ in range(draw.randrange(8)):
            step += draw.choice([0, 1, 1, 1, 3])
            steps.append(draw.randrange(step + 1) if draw.random() < 0.1 * (seed % 3) else step)
        yield steps, [draw.random() for _ in steps]


@pytest.mark.parametrize("seed", range(6))
def test_by_step_is_what_a_dict_would_be(seed):
    found, want, draw = ByStep("d"), {}, random.Random(seed)
    for steps, values in blocks(seed):
        found.extend(steps, values)
        want.update(zip(steps, values, strict=True))
        if draw.random() < 0.1:
            cut = draw.randrange(40)
            stays = {step for step in want if draw.random() < 0.3}
            found.cut(cut, stays)
            want = {step: value for step, value in want.items() if step < cut or step in stays}
        assert dict(found) == want and len(found) == len(want) and list(found) == sorted(want)
        assert all(found[step] == value for step, value in want.items()) and -1 not in found
