import cmath
import math

import pytest
import torch

from stepguard import exact_radius, slope_spread, spread_radius, step_ratio


def winding_number(logits, slopes, radius, points=4000):
    """How many zeros sum_k exp(z_k + a_k t) has inside |t| < radius, by the argument principle."""

    def value(angle):
        t = radius * cmath.exp(1j * angle)
        return sum(cmath.exp(z + a * t) for z, a in zip(logits, slopes, strict=True))

    total, previous = 0.0, value(0.0)
    for i in range(1, points + 1):
        current = value(2 * math.pi * i / points)
        total += cmath.phase(current / previous)
        previous = current
    return round(total / (2 * math.pi))


def test_nothing_moves_nothing_is_limited():
    slopes = torch.full((3, 4), 2.5)
    assert spread_radius(slopes).tolist() == [math.inf] * 3
    assert step_ratio(slopes).tolist() == [0.0] * 3


def test_radius_and_ratio_are_inverse_and_per_sample():
    slopes = torch.tensor([[0.0, 1.0, math.pi], [0.0, -math.pi, 3 * math.pi]])
    torch.testing.assert_close(spread_radius(slopes), torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(step_ratio(slopes), torch.tensor([1.0, 4.0]))
    assert step_ratio(slopes).quantile(0.5).item() == pytest.approx(2.5)


@pytest.mark.parametrize("seed", range(8))
def test_exact_radius_is_where_the_first_zero_is(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(1, 2, dtype=torch.float64, generator=generator)
    slopes = torch.randn(1, 2, dtype=torch.float64, generator=generator)
    rho = exact_radius(logits, slopes).item()
    assert winding_number(logits[0].tolist(), slopes[0].tolist(), 0.99 * rho) == 0
    assert winding_number(logits[0].tolist(), slopes[0].tolist(), 1.01 * rho) == 2  # the zero and its conjugate


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_no_zero_inside_the_spread_radius(classes):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(1, classes, dtype=torch.float64, generator=generator)
        slopes = torch.randn(1, classes, dtype=torch.float64, generator=generator)
        rho = spread_radius(slopes).item()
        assert winding_number(logits[0].tolist(), slopes[0].tolist(), 0.999 * rho) == 0


def test_two_equal_logits_put_the_zero_on_the_spread_radius():
    logits, slopes = torch.tensor([[1.5, 1.5], [0.0, 8.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert exact_radius(logits, slopes)[0] == pytest.approx(spread_radius(slopes)[0])
    assert exact_radius(logits, slopes)[1] > spread_radius(slopes)[1]


def test_exact_radius_refuses_what_it_has_no_formula_for():
    with pytest.raises(ValueError, match="two classes only, these logits have 3"):
        exact_radius(torch.zeros(1, 3), torch.ones(1, 3))


@pytest.mark.parametrize("shape", [(2, 1), (2, 0), ()])
def test_shapes_that_are_no_softmax(shape):
    with pytest.raises(ValueError, match="at least two classes"):
        slope_spread(torch.zeros(shape))


def test_logits_and_slopes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"\(2, 2\) and slopes \(3, 2\) differ in shape"):
        exact_radius(torch.zeros(2, 2), torch.zeros(3, 2))


def test_nan_slopes_give_nan_not_safety():
    assert not step_ratio(torch.tensor([[0.0, math.nan, 1.0]])).max() <= 1.0


def test_leading_dimensions_are_free():
    slopes = torch.randn(2, 3, 4)
    torch.testing.assert_close(step_ratio(slopes).flatten(), step_ratio(slopes.flatten(0, 1)))
