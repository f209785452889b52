"""How near a softmax came to collapse."""

import math

import pytest
from made_up_runs import look, reading, run_of

from stepguard.diagnosis.softmax import softmax

# float32 loses what is 2**-24 of 1, float16 2**-11, float64 2**-53.
WIDER = {
    "float16": {"float32": 13 * math.log(2), "float64": 42 * math.log(2)},
    "bfloat16": {"float32": 16 * math.log(2), "float64": 45 * math.log(2)},
    "float32": {"float64": 29 * math.log(2)},
    "float64": {},
    "unknown": {},
    "float32, float16": {"float32": 13 * math.log(2), "float64": 42 * math.log(2)},
}


@pytest.mark.parametrize("dtype", WIDER)
def test_a_wider_dtype_has_as_many_more_nats_as_it_has_bits(dtype):
    found = softmax(run_of(looks=[look(0, 2.0, dtype=dtype), look(10, -1.0, dtype=dtype), look(20, 3.0, dtype=dtype)]))
    assert {w.dtype: w.lowest + 1.0 for w in found.wider} == pytest.approx(WIDER[dtype])
    assert {w.dtype: w.last - 3.0 for w in found.wider} == pytest.approx(WIDER[dtype])


def test_first_lowest_and_last():
    looks = [look(0, 9.0), look(10, 4.0, collapse=0.0), look(20, -0.5, collapse=0.25), look(30, 6.0, collapse=0.1)]
    found = softmax(run_of(looks=looks))
    assert (found.first, found.lowest, found.lowest_step, found.last, found.last_step) == (9.0, -0.5, 20, 6.0, 30)
    assert (found.collapsed_most, found.collapsed_most_step, found.collapsed) == (0.25, 20, 0.1)


def test_alignment_is_that_of_the_second_half():
    values = [0.1, 0.1, None, 0.8, 0.9, 0.7]
    found = softmax(run_of(looks=[look(s, 9.0, nlm_alignment=value) for s, value in enumerate(values)]))
    assert found.alignment == 0.8 and found.scales


def test_what_nobody_looked_at():
    assert softmax(run_of([reading(0)])) is None
    assert softmax(run_of(looks=[look(0, math.nan)])) is None
