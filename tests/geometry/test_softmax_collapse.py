import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from stepguard.geometry.collapse import absorption, blocks, sigmoid_absorption, softmax_collapse

# Nats by which k equal other classes must be behind, from the paper's own way to sum; the largest logit stands in
# the middle, for where it stands decides in which order float32 adds.
MARGINS = {
    (1, torch.float16): 7.62,
    (1, torch.bfloat16): 5.55,
    (1, torch.float32): 16.64,
    (1, torch.float64): 36.74,
    (9, torch.float16): 9.82,
    (9, torch.bfloat16): 7.73,
    (9, torch.float32): 18.43,
    (9, torch.float64): 37.43,
    (112, torch.float16): 12.34,
    (112, torch.bfloat16): 10.28,
    (112, torch.float32): 19.28,
    (112, torch.float64): 40.07,
}


def ahead(margin, others, dtype, place=None):
    z = torch.zeros(1, others + 1, dtype=dtype)
    z[0, others // 2 if place is None else place] = margin
    return z


@pytest.mark.parametrize("others, dtype", MARGINS, ids=str)
def test_headroom_has_the_known_margins(others, dtype):
    margin = 4.0 + softmax_collapse(ahead(4.0, others, dtype)).headroom_N.item()
    assert margin == pytest.approx(MARGINS[others, dtype], abs=0.006)


@pytest.mark.parametrize("others, dtype", MARGINS, ids=str)
@pytest.mark.parametrize("place", [0, -1])
def test_headroom_is_where_the_sum_becomes_one(others, dtype, place):
    headroom = softmax_collapse(ahead(0.0, others, torch.float64, place).to(dtype)).headroom_N.item()
    coarse = 0.05 if dtype in (torch.float16, torch.bfloat16) else 0.01  # logits of 8 are rounded to that
    d = -torch.ones(1, others + 1, dtype=torch.float64)
    # all logits alike, the first of them is the largest
    before, after = ((d * (headroom + by)).index_fill(1, torch.tensor([0]), 0.0).to(dtype) for by in (-coarse, coarse))
    assert before.exp().sum() != 1
    assert after.exp().sum() == 1


def test_nothing_is_near_collapse_where_logits_are_small():
    near = softmax_collapse(torch.randn(20, 7), torch.randint(0, 7, (20,)))
    assert not near.collapsed_N.any() and not near.zero_loss_N.any()
    assert (near.headroom_N > 5).all()


def test_one_sample_collapses_and_only_that():
    z = torch.zeros(3, 5)
    z[1, 2] = 30.0
    near = softmax_collapse(z, torch.tensor([0, 2, 4]))
    assert near.collapsed_N.tolist() == [False, True, False]
    assert near.zero_loss_N.tolist() == [False, True, False]
    assert (near.headroom_N < 0).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_collapsed_is_negative_headroom_and_is_what_the_sum_says(dtype):
    torch.manual_seed(0)
    z = (20 * torch.randn(500, 6)).to(dtype)
    near = softmax_collapse(z)
    assert torch.equal(near.collapsed_N, (z - z.amax(-1, keepdim=True)).exp().sum(-1) == 1)
    sure = near.headroom_N.abs() > 0.3  # of what rounding of the logits may decide
    assert torch.equal(near.collapsed_N[sure], near.headroom_N[sure] < 0)
    assert near.collapsed_N.any() or dtype == torch.float64


def test_zero_losses_are_those_of_cross_entropy():
    torch.manual_seed(0)
    z, y = 15 * torch.randn(300, 4), torch.randint(0, 4, (300,))
    zero = F.cross_entropy(z, y, reduction="none") == 0
    assert zero.any() and torch.equal(softmax_collapse(z, y).zero_loss_N, zero)


def test_dtype_is_that_of_the_loss():
    z = ahead(8.0, 1, torch.float32)
    assert not softmax_collapse(z).collapsed_N
    assert softmax_collapse(z, dtype=torch.float16).collapsed_N


def test_samples_that_do_not_count():
    z = torch.zeros(6, 3)
    z[1, 1:] = -math.inf  # one class is left
    z[2, 0] = math.nan
    z[3, 0] = math.inf
    z[4, 2] = -math.inf
    assert len(softmax_collapse(z).headroom_N) == 3
    target = torch.tensor([0, 0, 0, 0, 0, -100])
    near = softmax_collapse(z, target)
    assert [len(part) for part in near] == [2, 2, 2]
    assert len(softmax_collapse(z, torch.tensor([0, 0, 0, 0, 1, 1]), ignore_index=1).headroom_N) == 1
    assert len(softmax_collapse(torch.zeros(4, 1)).headroom_N) == 0
    assert len(softmax_collapse(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).zero_loss_N) == 0


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5)])
def test_any_leading_shape(shape):
    torch.manual_seed(0)
    z, y = 5 * torch.randn(*shape), torch.randint(0, 5, shape[:-1])
    near = softmax_collapse(z, y)
    flat = softmax_collapse(z.reshape(-1, 5), y.reshape(-1))
    assert all(torch.equal(a, b) for a, b in zip(near, flat, strict=True))


def test_memory_that_is_not_contiguous_and_more_than_a_block(monkeypatch):
    monkeypatch.setattr("stepguard.geometry.collapse._BLOCK", 60)
    torch.manual_seed(0)
    images = 5 * torch.randn(3, 5, 4, 2)  # classes second, as in segmentation
    z, y = images.movedim(1, -1), torch.randint(0, 5, (3, 4, 2))
    assert len(list(blocks(z, y))) == 3
    near, flat = softmax_collapse(z, y), softmax_collapse(z.contiguous(), y)
    assert len(near.headroom_N) == 24
    assert all(torch.equal(a, b) for a, b in zip(near, flat, strict=True))


def test_samples_not_looked_at_closely_are_between_their_bounds():
    torch.manual_seed(0)
    z = 4 * torch.randn(400, 30)
    exact = absorption(z).headroom_N
    rough = absorption(z, closely=0).headroom_N
    assert (exact - rough).abs().max() < math.log(30) / 2 + 0.1
    some = absorption(z, closely=50).headroom_N
    assert (some == exact).sum() == 50
    lowest = rough.argsort()[:50]
    assert_close(some[lowest], exact[lowest])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sigmoid_collapses_where_it_is_one(dtype):
    z = torch.arange(-60, 60, 0.25, dtype=torch.float64).to(dtype)
    near = sigmoid_absorption(z)
    assert torch.equal(near.collapsed_N, (z.sigmoid() == 1) | (z.sigmoid() == 0))
    sure = near.headroom_N.abs() > 0.05
    assert torch.equal(near.collapsed_N[sure], near.headroom_N[sure] < 0)


def test_gradients_and_logits_stay_as_they_are():
    z = torch.randn(4, 3, requires_grad=True)
    before = z.detach().clone()
    near = softmax_collapse(z, torch.tensor([0, 1, 2, -100]))
    assert not near.headroom_N.requires_grad and torch.equal(z, before)


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="floating point, got torch.int64"):
        softmax_collapse(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"classes last, one target a sample; got \(2, 3\) and \(3,\)"):
        softmax_collapse(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
