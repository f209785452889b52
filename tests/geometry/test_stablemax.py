import math
import re
from decimal import Context, Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.overrides import TorchFunctionMode

from stepguard.geometry.stablemax import StableMaxCrossEntropyLoss, log_stablemax, stablemax_cross_entropy

# PyTorch's own, when it first loads what forward mode needs.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def log_s(z):
    """As the paper has it, for where its two branches may be selected by index."""
    result = torch.empty_like(z)
    result[z >= 0] = (z[z >= 0] + 1).log()
    result[z < 0] = -(1 - z[z < 0]).log()
    return result


def exact(z, target, smoothing=0.0):
    """Loss and gradient of the logits, to more digits than any float has."""
    with localcontext(Context(prec=60, Emax=10**6, Emin=-(10**6))):
        z, smoothing = [Decimal(v) for v in z], Decimal(smoothing)
        y = [(1 - smoothing) * (k == target) + smoothing / len(z) for k in range(len(z))]
        s = [1 + v if v >= 0 else 1 / (1 - v) for v in z]
        rest = [sum(s[:k] + s[k + 1 :]) for k in range(len(s))]
        # ln(1 + x) rounds to 0 where x is below its digits; there it is x.
        nll = [(1 + r / s_k).ln() if r / s_k > Decimal("1e-29") else r / s_k for r, s_k in zip(rest, s, strict=True)]
        p_minus_y = [-r / sum(s) if y_k == 1 else s_k / sum(s) - y_k for r, s_k, y_k in zip(rest, s, y, strict=True)]
        loss = sum(y_k * nll_k for y_k, nll_k in zip(y, nll, strict=True))
        return float(loss), [float(d / (1 + abs(v))) for d, v in zip(p_minus_y, z, strict=True)]


def loss_and_gradient(loss, z, *args, **kwargs):
    z = z.detach().clone().requires_grad_()
    value = loss(z, *args, **kwargs)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def test_equal_logits_share_evenly_and_grow_linearly():
    torch.testing.assert_close(log_stablemax(torch.full((2, 4), -3.0)).exp(), torch.full((2, 4), 0.25))
    torch.testing.assert_close(log_stablemax(torch.tensor([3.0, 0.0])).exp(), torch.tensor([0.8, 0.2]))


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_stablemax_of_the_paper(dim):
    z = torch.randn(3, 4, 5, dtype=torch.float64) * 3
    torch.testing.assert_close(log_stablemax(z, dim), log_s(z).log_softmax(dim))


INDICES, ROW = torch.tensor([0, 2, 4, 2]), torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125], dtype=torch.float64)
SHAPES = {
    "C": ((5,), torch.tensor(2)),
    "NC": ((4, 5), INDICES),
    "NCd": ((4, 5, 3), INDICES[:, None].expand(4, 3)),
    "NCddd": ((4, 5, 1, 2, 1), INDICES[:, None, None, None].expand(4, 1, 2, 1)),
    "N=0": ((0, 5), INDICES[:0]),
    "one class": ((4, 1), torch.zeros(4, dtype=torch.long)),
    "soft C": ((5,), ROW),
    "soft NC": ((4, 5), ROW.expand(4, 5)),
    "soft NCd": ((4, 5, 3), ROW[:, None].expand(4, 5, 3)),
    "soft that sum to 2": ((4, 5), 2 * ROW.expand(4, 5)),
    "soft N=0": ((0, 5), ROW.expand(0, 5)),
    "soft float32": ((4, 5), ROW.expand(4, 5).float()),
}
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
OPTIONS = [{}, {"weight": WEIGHT}, {"ignore_index": 2}, {"ignore_index": 2, "weight": WEIGHT}, {"ignore_index": 0}]
# PyTorch refuses to ignore a class of probabilities.
CASES = [(s, o) for s in SHAPES for o in OPTIONS if not (s.startswith("soft") and "ignore_index" in o)]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0, -1.0])
@pytest.mark.parametrize(("shape", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x) or "plain")
def test_everything_that_cross_entropy_does(shape, options, label_smoothing, reduction):
    size, target = SHAPES[shape]
    options = dict(options, reduction=reduction, label_smoothing=label_smoothing)
    if "weight" in options:
        options["weight"] = options["weight"][: size[0 if len(size) == 1 else 1]]
    z = torch.randn(size, dtype=torch.float64) * 3
    ours = loss_and_gradient(stablemax_cross_entropy, z, target, **options)
    theirs = loss_and_gradient(lambda z: F.cross_entropy(log_s(z), target, **options), z)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [(5,), (3, 5), (2, 5, 2), (3, 1)], ids=str)
def test_derivatives_of_every_kind(size, label_smoothing, soft):
    z = (torch.randn(size, dtype=torch.float64) * 3).requires_grad_()
    class_dim = 0 if len(size) == 1 else 1
    target = z.detach().softmax(class_dim) if soft else torch.zeros(size[:class_dim] + size[class_dim + 1 :]).long()

    def loss(z):
        return stablemax_cross_entropy(z, target, reduction="none", label_smoothing=label_smoothing)

    assert gradcheck(loss, z, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(loss, z, check_fwd_over_rev=True)
    assert gradcheck(log_stablemax, z, check_forward_ad=True)


CORNERS = [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-0.0, 1.0, 1.0], [-1.0, -1.0, -0.0]]


@pytest.mark.parametrize("z", CORNERS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradients_at_0_and_1_by_every_road(dtype, z):
    """Where abs has no slope and the paper's where has a nan: s'(0) is 1 from both sides."""
    z, targets = torch.tensor(z, dtype=dtype), torch.arange(3)
    expected = torch.tensor([exact(z.tolist(), t)[1] for t in range(3)], dtype=dtype)

    def loss(z, target):
        return stablemax_cross_entropy(z, target)

    backward = torch.stack([loss_and_gradient(loss, z, target)[1] for target in targets])
    mapped = torch.func.vmap(torch.func.grad(loss), (None, 0))(z, targets)
    forward = torch.stack([torch.func.jvp(lambda z, t=t: loss(z, t), (z,), (e,))[1] for t in targets for e in basis(z)])
    with forward_ad.dual_level():
        duals = [loss(forward_ad.make_dual(z, e), t) for t in targets for e in basis(z)]
        dual = torch.stack([forward_ad.unpack_dual(d).tangent for d in duals])
    for gradient in (backward, mapped, forward.reshape(3, 3), dual.reshape(3, 3)):
        torch.testing.assert_close(gradient, expected)


def basis(z):
    return torch.eye(len(z), dtype=z.dtype)


HUGE = {
    torch.float16: [1.0, 300.0, 65504.0],
    torch.bfloat16: [1.0, 1e9, 1e30],
    torch.float32: [1.0, 1e9, 1e30],
    torch.float64: [1.0, 1e100, 1e300],
}


@pytest.mark.parametrize("kind", ["index", "one-hot", "smoothed"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_huge_logits_keep_their_digits(dtype, kind):
    """Each loss and gradient beside 60 digits, where cross_entropy(log s(z)) has lost them all."""
    limits, one, two = torch.finfo(dtype), *HUGE[dtype][1:]
    eps = limits.eps if dtype.itemsize > 2 else limits.eps / 2  # 16 bits: the rounding of the result alone
    smoothing = 2.0**-20 if kind == "smoothed" else 0.0
    for z in [[two, 1, 0], [two, -two, 2], [two, two / 2, 0], [-one, -two, -two], [one, two, -one], [-two, 1, 1]]:
        z = torch.tensor(z, dtype=dtype)
        for t in range(3):
            target = basis(z)[t] if kind == "one-hot" else torch.tensor(t)
            loss, gradient = loss_and_gradient(stablemax_cross_entropy, z, target, label_smoothing=smoothing)
            assert loss.dtype == gradient.dtype == dtype
            true_loss, true_gradient = exact(z.tolist(), t, smoothing)
            rtol = 1.01 * eps * (1 if dtype.itemsize == 2 else 4 + 2 * math.log1p(z.abs().max()))
            for ours, true in zip([loss.item(), *gradient.tolist()], [true_loss, *true_gradient], strict=True):
                assert ours == pytest.approx(true, rel=rtol, abs=limits.smallest_normal * limits.eps)


def test_a_fitted_sample_goes_on_learning():
    z, target = torch.tensor([[1e9, 0.0, 0.0]]), torch.tensor([0])
    assert loss_and_gradient(lambda z: F.cross_entropy(log_s(z), target), z)[1][0, 0] == 0  # the collapse
    loss, gradient = loss_and_gradient(stablemax_cross_entropy, z, target)
    torch.testing.assert_close(loss, torch.tensor(2e-9), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient, torch.tensor([[-2e-18, 1e-9, 1e-9]]), rtol=1e-5, atol=0)


def test_the_likeliest_of_many_classes_keeps_its_digits_when_it_is_wrong():
    z, target = torch.zeros(20_000), torch.tensor(1)
    z[0] = 1.0
    gradient = loss_and_gradient(stablemax_cross_entropy, z, target)[1]
    assert gradient[0].item() == pytest.approx(1 / 20_001, rel=1e-5)  # p * s'(1) = 2 / 20_001 * 1 / 2


def test_masked_classes_take_no_part():
    z = torch.tensor([[1.0, -math.inf, 0.0], [2.0, -math.inf, -math.inf]])
    loss, gradient = loss_and_gradient(stablemax_cross_entropy, z, torch.tensor([2, 0]), reduction="none")
    torch.testing.assert_close(loss, torch.tensor([math.log(3), 0.0]))
    torch.testing.assert_close(gradient, torch.tensor([[1 / 3, 0.0, -2 / 3], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes_are_those_of_pytorch(dtype, autocast):
    z, target = torch.randn(4, 5).to(dtype), torch.zeros(4, dtype=torch.long)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        for reduction in ("none", "mean", "sum"):
            for smoothing in (0.0, 0.1):
                kwargs = {"reduction": reduction, "label_smoothing": smoothing}
                for y in [target, target.byte(), *(torch.rand(4, 5).to(soft) for soft in FLOATS)]:
                    ours, theirs = stablemax_cross_entropy(z, y, **kwargs), F.cross_entropy(z, y, **kwargs)
                    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
                weight = torch.ones(5).to(dtype)
                if not (autocast and dtype == torch.float64):
                    ours = stablemax_cross_entropy(z, target, weight, **kwargs)
                    assert ours.dtype == F.cross_entropy(z, target, weight, **kwargs).dtype
        assert log_stablemax(z).dtype == torch.log_softmax(z, -1).dtype


def test_16_bits_are_computed_in_32():
    z, target = torch.randn(64, 10).half(), torch.arange(64) % 10
    for kwargs in ({}, {"label_smoothing": 0.1}, {"weight": torch.rand(10).half()}):
        wide = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        ours = stablemax_cross_entropy(z, target, **kwargs)
        torch.testing.assert_close(ours, stablemax_cross_entropy(z.float(), target, **wide).half(), rtol=0, atol=0)


Z, Y, P = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.full((3, 4), 0.25)


@pytest.mark.parametrize(
    ("z", "target", "options"),
    [
        (Z, Y[:2], {}),
        (Z, Y + 2, {}),
        (Z, Y - 3, {}),
        (Z, Y.float(), {}),
        (Z, Y.int(), {}),
        (Z, P[:, :3], {}),
        (Z, P.long(), {}),
        (Z[..., None], Y, {}),
        (Z[..., None].expand(3, 4, 5), torch.zeros(3, 4, dtype=torch.long), {}),
        (Z[0, 0], Y, {}),
        (Z, Y, {"weight": torch.ones(3)}),
        (Z, P, {"weight": torch.ones(1)}),
        (Z, Y, {"weight": torch.ones(4).double()}),
        (Z.half(), Y, {"weight": torch.ones(4)}),
        (Z, P, {"ignore_index": 1}),
        (Z, Y, {"label_smoothing": 1.1}),
        (Z, P, {"label_smoothing": 1.1}),
        (Z, Y, {"reduction": "average"}),
        (Z, P, {"reduction": "average"}),
    ],
)
def test_what_cross_entropy_refuses_is_refused_with_its_words(z, target, options):
    with pytest.raises(Exception) as theirs:  # noqa: B017, PT011 - whatever it is, ours is the same
        F.cross_entropy(z, target, **options)
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        stablemax_cross_entropy(z, target, **options)


def test_logits_that_are_no_logits():
    with pytest.raises(IndexError, match="Dimension out of range"):
        log_stablemax(Z, 2)
    for dtype in (torch.long, torch.complex64):
        with pytest.raises(TypeError, match=f"logits must be floating point, got {dtype}"):
            log_stablemax(Z.to(dtype))
        with pytest.raises(TypeError, match=f"logits must be floating point, got {dtype}"):
            stablemax_cross_entropy(Z.to(dtype), Y)


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def test_function_modes_see_one_call():
    weight, options = torch.rand(4), {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}
    expected = stablemax_cross_entropy(Z, Y, weight, **options), log_stablemax(Z, 0)
    with Calls() as outer, Calls() as calls:
        got = stablemax_cross_entropy(Z, Y, weight, **options), log_stablemax(Z, 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert outer.seen == calls.seen
    (f, args, kwargs), (g, other_args, other_kwargs) = calls.seen
    assert f is stablemax_cross_entropy and args[0] is Z and args[1] is Y and kwargs == {"weight": weight, **options}
    assert g is log_stablemax and other_args[0] is Z and other_kwargs == {"dim": 0}


def test_tensor_subclasses_see_one_call():
    seen = []

    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    loss = stablemax_cross_entropy(Z.as_subclass(Own), Y)
    assert seen == [stablemax_cross_entropy] and isinstance(loss, Own)


@pytest.mark.parametrize("target", [Y, P], ids=["index", "soft"])
def test_compiles_in_one_piece(target):
    def run(z):
        return stablemax_cross_entropy(z, target, label_smoothing=0.1) + log_stablemax(z).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(loss_and_gradient(compiled, Z), loss_and_gradient(run, Z))


def test_the_module_is_the_function_with_its_arguments_kept():
    options = {"ignore_index": 1, "reduction": "sum", "label_smoothing": 0.1}
    weight = torch.rand(4)
    criterion = StableMaxCrossEntropyLoss(weight, **options)
    assert isinstance(criterion, nn.CrossEntropyLoss) and list(criterion.state_dict()) == ["weight"]
    torch.testing.assert_close(criterion(Z, Y), stablemax_cross_entropy(Z, Y, weight, **options), rtol=0, atol=0)
    with Calls() as calls:
        criterion.double()(Z.double(), Y)
    assert calls.seen[-1][0] is stablemax_cross_entropy and calls.seen[-1][2]["weight"].dtype == torch.float64
