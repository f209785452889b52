"""Every case of the matrix: r beside its float64 reference, or the very refusal that it must give."""

import re

import pytest
from matrix.huggingface import HUGGING_FACE
from matrix.models import MODELS
from matrix.steps import STEPS
from matrix.steps_refused import REFUSED
from matrix.task import Case, run, same, trail

CASES: list[Case] = [*MODELS, *HUGGING_FACE, *STEPS, *REFUSED]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_r_is_right_or_refused(case):
    for step, found in enumerate(run(case)):
        if case.refused:
            assert found.unmeasured and found.estimator == "", f"measured r = {found.r}"
            assert re.search(case.refused, found.unmeasured), found.unmeasured
        else:
            assert not found.unmeasured, f"step {step}: {found.unmeasured}"
            assert found.r == pytest.approx(found.reference, rel=case.tolerance)
            assert found.estimator == case.estimator


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore")
def test_an_observing_guard_is_invisible(case):
    alone, guarded = trail(case, guarded=False), trail(case, guarded=True)
    differing = [i for i, (one, other) in enumerate(zip(alone, guarded, strict=True)) if not same(one, other)]
    assert not differing, f"{alone[differing[0]]} became {guarded[differing[0]]}"[:2000]
