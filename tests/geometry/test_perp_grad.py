"""perpGrad beside a plain float64 computation, the published algorithm, and where the published code goes wrong."""

import math

import pytest
import torch
from torch import nn

from stepguard import nlm_alignment, perp_grad_
from stepguard.geometry import families, nlm_alignments

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(8, 3), (5,), (5,), (4, 2, 3, 3), (300, 300), (7, 1), (8, 3)]


@pytest.fixture(params=["processor", "device"])
def where(request, monkeypatch):
    """Also the way that GPUs go, which never looks at a number; of stacked, and of single large parameters."""
    if request.param == "device":
        monkeypatch.setattr(families, "_is_host", lambda device: False)


def parameters(shapes=SHAPES, dtype=torch.float32):
    made = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def reference(w, g, restore_norm):
    new = g - (w @ g) / (w @ w) * w
    return new * (g.norm() / new.norm()) if restore_norm else new


def published(w, g):
    """As in the paper's code, per tensor."""
    direction = g - (w @ g) / (w @ w + 1e-30) * w
    return direction * (g.norm() / (direction.norm() + 1e-30))


def roundings(dtype, number=4):
    return number * max(torch.finfo(dtype).eps, 1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restore_norm", [True, False])
@pytest.mark.parametrize("over", ["tensor", "all"])
def test_as_in_float64(where, over, restore_norm, dtype):
    given = parameters(dtype=dtype)
    before = [p.grad.clone() for p in given]
    perp_grad_(given, over=over, restore_norm=restore_norm)
    if over == "all":
        expected = reference(flat(given), flat(before), restore_norm)
        found = flat(p.grad for p in given)
        torch.testing.assert_close(found, expected, rtol=roundings(dtype), atol=roundings(dtype))
        return
    for p, g in zip(given, before, strict=True):
        expected = reference(flat([p]), flat([g]), restore_norm)
        torch.testing.assert_close(flat([p.grad]), expected, rtol=roundings(dtype), atol=roundings(dtype))


def test_as_published_where_that_is_sound():
    given = parameters()
    before = [p.grad.clone() for p in given]
    perp_grad_(given)
    for p, g in zip(given, before, strict=True):
        torch.testing.assert_close(p.grad.view(-1), published(p.detach().view(-1), g.view(-1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sine", [1e-1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("size", [(40,), (400, 500)])
def test_nearly_parallel_keeps_what_is_not(where, sine, size):
    w = nn.Parameter(torch.randn(size))
    other = reference(flat([w]), flat([torch.randn(size)]), restore_norm=False)
    w.grad = (3 * w.detach() + 3 * sine * w.detach().norm() * (other / other.norm()).view(size)).float()
    expected = reference(flat([w]), flat([w.grad]), restore_norm=True)
    norm = w.grad.norm()
    perp_grad_(w)
    assert w.grad.norm().item() == pytest.approx(norm.item(), rel=1e-3)
    # The gradient itself holds what is left only to its own rounding.
    assert (flat([w.grad]) - expected).norm() < 10 * roundings(torch.float32, 1) / sine * norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1.0, -3.0, 0.1])
@pytest.mark.parametrize("size", [(2,), (64, 65), (400, 500)])
def test_along_the_weights_nothing_is_left(where, dtype, factor, size):
    w = nn.Parameter(torch.randn(size).to(dtype))
    w.grad = factor * w.detach()
    perp_grad_(w)
    assert not w.grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_weights_zero_gradients_and_single_elements_are_left_alone(where, dtype):
    zero, still, single, ordinary = parameters([(3, 4), (3, 4), (1, 1), (3, 4)], dtype)
    zero.data.zero_()
    still.grad.zero_()
    before = [p.grad.clone() for p in (zero, still, single, ordinary)]
    perp_grad_([zero, still, single, ordinary])
    for p, g in zip((zero, still, single), before, strict=False):
        assert torch.equal(p.grad, g)
    assert not torch.equal(ordinary.grad, before[3])


def test_over_all_single_elements_and_zeros_take_part(where):
    given = parameters([(1,), (3, 4), (2,)])
    given[2].data.zero_()
    expected = reference(flat(given), flat(p.grad for p in given), restore_norm=False)
    perp_grad_(given, over="all", restore_norm=False)
    torch.testing.assert_close(flat(p.grad for p in given), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights, gradients", [(1e-7, 1e-6), (1e4, 1e4), (1e-4, 1e4), (1e4, 1e-4)])
def test_far_from_one_in_size(where, dtype, weights, gradients):
    w = nn.Parameter((weights * torch.randn(30, 40)).to(dtype))
    w.grad = (gradients * torch.randn(30, 40)).to(dtype)
    expected = reference(flat([w]), flat([w.grad]), restore_norm=True)
    perp_grad_(w)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(
        flat([w.grad]), expected, rtol=roundings(dtype), atol=4 * gradients * roundings(dtype, 1) + smallest
    )


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15, 1e25])
def test_float32_whose_squares_would_not_fit(where, size):
    w = nn.Parameter(size * torch.randn(30, 40))
    w.grad = torch.randn(30, 40) * size
    expected = reference(flat([w]), flat([w.grad]), restore_norm=True)
    perp_grad_(w)
    torch.testing.assert_close(flat([w.grad]) / size, expected / size, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("over", ["tensor", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gradient_scaler_makes_no_difference(where, over, dtype):
    plain, scaled = parameters(dtype=dtype), parameters(dtype=dtype)
    for p, q in zip(plain, scaled, strict=True):
        q.data.copy_(p.data)
        p.grad = p.grad / 256
        q.grad = p.grad * 256
    perp_grad_(plain, over=over)
    perp_grad_(scaled, over=over)
    for p, q in zip(plain, scaled, strict=True):
        torch.testing.assert_close(q.grad, p.grad * 256, rtol=roundings(dtype, 2), atol=roundings(dtype, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("over", ["tensor", "all"])
@pytest.mark.parametrize("shape", [(3, 4), (300, 300)])
def test_what_is_not_finite_stays_for_a_scaler_to_find(where, bad, over, shape):
    given = parameters([(3, 4), shape])
    given[1].grad.view(-1)[5] = bad
    before = [p.grad.clone() for p in given]
    perp_grad_(given, over=over)
    assert torch.equal(given[1].grad.nan_to_num(7), before[1].nan_to_num(7))
    assert torch.equal(given[0].grad, before[0]) == (over == "all")


LAST = torch.channels_last
LAYOUTS = {
    "channels_last": lambda: (
        torch.randn(6, 4, 3, 3).to(memory_format=LAST),
        torch.randn(6, 4, 3, 3).to(memory_format=LAST),
    ),
    "gradient contiguous": lambda: (torch.randn(6, 4, 3, 3).to(memory_format=LAST), torch.randn(6, 4, 3, 3)),
    "transposed": lambda: (torch.randn(9, 5).T, torch.randn(9, 5).T),
    "weights transposed": lambda: (torch.randn(9, 5).T, torch.randn(5, 9)),
    "with gaps": lambda: (torch.randn(9, 10)[:, ::2], torch.randn(9, 10)[:, ::2]),
    "large, with gaps": lambda: (torch.randn(400, 700)[:, ::2], torch.randn(400, 350)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(where, layout):
    w, g = LAYOUTS[layout]()
    p = nn.Parameter(w)
    p.grad = g
    expected = reference(flat([w]), flat([g.clone()]), restore_norm=True).view(w.shape)
    address, strides = p.grad.data_ptr(), p.grad.stride()
    perp_grad_(p)
    torch.testing.assert_close(p.grad.double(), expected, rtol=1e-6, atol=1e-6)
    assert (p.grad.data_ptr(), p.grad.stride()) == (address, strides)  # in place


def test_gradients_of_another_dtype_than_their_weights(where):
    p = nn.Parameter(torch.randn(20, 20))
    p.grad_dtype = None
    p.grad = torch.randn(20, 20).bfloat16()
    expected = reference(flat([p]), flat([p.grad]), restore_norm=True)
    perp_grad_(p)
    assert p.grad.dtype == torch.bfloat16
    torch.testing.assert_close(flat([p.grad]), expected, rtol=1e-2, atol=1e-2)


def test_complex_weights_are_pairs_of_real_ones(where):
    p = nn.Parameter(torch.randn(5, 6, dtype=torch.complex64))
    p.grad = torch.randn(5, 6, dtype=torch.complex64)
    w, g = (torch.view_as_real(t.detach()).double().flatten() for t in (p, p.grad))
    perp_grad_(p)
    found = torch.view_as_real(p.grad).double().flatten()
    torch.testing.assert_close(found, reference(w, g, restore_norm=True), rtol=1e-6, atol=1e-6)


def test_a_sparse_gradient_is_refused_before_anything_changes():
    dense, embedding = parameters([(3, 4)])[0], nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    before = dense.grad.clone()
    with pytest.raises(ValueError, match=r"shape \(10, 3\) is sparse.*sparse=False"):
        perp_grad_([dense, embedding.weight])
    assert torch.equal(dense.grad, before)


def test_without_gradient_twice_and_of_a_generator():
    given = parameters([(3, 4), (3, 4)])
    given[0].grad = None
    once = nn.Parameter(given[1].detach().clone())
    once.grad = given[1].grad.clone()
    perp_grad_(once)
    perp_grad_(p for p in (*given, given[1]))
    assert given[0].grad is None and torch.equal(given[1].grad, once.grad)
    perp_grad_([])


def test_matrices_only():
    matrix, bias = parameters([(3, 4), (5,)])
    before = [p.grad.clone() for p in (matrix, bias)]
    perp_grad_([matrix, bias], matrices_only=True)
    assert torch.equal(bias.grad, before[1]) and not torch.equal(matrix.grad, before[0])


def test_another_over_is_refused():
    with pytest.raises(ValueError, match='must be "tensor".* or "all".*; got \'layer\''):
        perp_grad_([], over="layer")


def test_clipping_by_norm_before_or_after_is_the_same():
    before, after = parameters(), parameters()
    for p, q in zip(before, after, strict=True):
        q.data.copy_(p.data), q.grad.copy_(p.grad)
    nn.utils.clip_grad_norm_(before, 0.5)
    perp_grad_(before)
    perp_grad_(after)
    nn.utils.clip_grad_norm_(after, 0.5)
    torch.testing.assert_close(flat(p.grad for p in before), flat(p.grad for p in after), rtol=1e-5, atol=1e-7)


def test_many_small_ones_go_together_on_a_device(monkeypatch):
    monkeypatch.setattr(families, "_is_host", lambda device: False)
    monkeypatch.setattr(families, "_FULL", 100)
    given = parameters([(4, 5)] * 23 + [(3,)] * 50)
    before = [p.grad.clone() for p in given]
    (family,) = families.families(given, to_change=True)
    assert [len(rows.at) for rows in family.rows] == [5, 5, 5, 5, 3, 34, 16]
    perp_grad_(given)
    for p, g in zip(given, before, strict=True):
        torch.testing.assert_close(flat([p.grad]), reference(flat([p]), flat([g]), True), rtol=1e-5, atol=1e-5)


def test_alignment_beside_a_plain_cosine(where):
    given = parameters()
    cosines = [-torch.cosine_similarity(flat([p]), flat([p.grad]), dim=0).item() for p in given]
    whole = -torch.cosine_similarity(flat(given), flat(p.grad for p in given), dim=0).item()
    assert nlm_alignment(given).item() == pytest.approx(whole, abs=1e-6)
    assert nlm_alignments(given).tolist() == pytest.approx(cosines, abs=1e-6)


def test_alignment_where_there_is_none():
    without, zero = parameters([(3, 4), (2,)])
    without.grad = None
    zero.grad.zero_()
    assert nlm_alignments([without, zero]).isnan().all() and math.isnan(nlm_alignment([without, zero]))
    assert math.isnan(nlm_alignment([])) and nlm_alignments([]).shape == (0,)


def test_alignment_of_a_sparse_gradient_leaves_it_sparse():
    embedding = nn.Embedding(10, 3, sparse=True)
    embedding(torch.tensor([1, 2, 2])).pow(2).sum().backward()
    expected = -torch.cosine_similarity(flat([embedding.weight]), flat([embedding.weight.grad.to_dense()]), dim=0)
    assert nlm_alignment(embedding.weight).item() == pytest.approx(expected.item(), abs=1e-6)
    assert embedding.weight.grad.is_sparse
