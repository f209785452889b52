import math

import pytest

from stepguard.guard.policy import Settings, step_scale

NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0, 7.0, *NOT_FINITE])
def test_observe_never_changes_a_step(r):
    assert step_scale("observe", r, 1.0) == 1.0


@pytest.mark.parametrize(
    ("r", "target", "scale"), [(0.0, 1, 1.0), (1.0, 1, 1.0), (4.0, 1, 0.25), (4.0, 2, 0.5), (0.4, 2, 1)]
)
def test_clamp_shortens_only_what_is_too_long(r, target, scale):
    assert step_scale("clamp", r, target) == scale


@pytest.mark.parametrize(("r", "scale"), [(4.0, 0.25), (0.5, 2.0), (1.0, 1.0), (0.0, 1.0), (5e-324, 1.0)])
def test_drive_sets_the_length(r, scale):
    assert step_scale("drive", r, 1.0) == scale


@pytest.mark.parametrize("action", ["clamp", "drive"])
@pytest.mark.parametrize("r", NOT_FINITE)
def test_what_is_not_finite_is_withheld(action, r):
    assert step_scale(action, r, 1.0) == 0.0


@pytest.mark.parametrize("target", [0, -1, math.nan, math.inf, "1", None, True])
def test_a_target_that_makes_no_sense(target):
    with pytest.raises(ValueError, match="target must be a positive, finite number"):
        Settings(target=target).checked()


def test_an_unknown_action_names_the_known_ones():
    with pytest.raises(ValueError, match="'observe', 'clamp', 'drive', got 'clip'"):
        Settings(action="clip").checked()


@pytest.mark.parametrize("quantile", [0, 1.5, math.nan, "max"])
def test_a_quantile_that_makes_no_sense(quantile):
    with pytest.raises(ValueError, match="quantile must lie in"):
        Settings(quantile=quantile).checked()


@pytest.mark.parametrize(("cadence", "every"), [("auto", 1), ("every", 1), (7, 7)])
def test_cadence(cadence, every):
    assert Settings(cadence=cadence).checked().every == every


@pytest.mark.parametrize("cadence", [0, -3, 1.5, "sometimes", None, True])
def test_a_cadence_that_makes_no_sense(cadence):
    with pytest.raises(ValueError, match="cadence must be"):
        Settings(cadence=cadence).checked()
