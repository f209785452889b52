from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from stepguard.probe.logits import LogitsError, check_scale, class_dimension, find_logits

Z = torch.ones(2, 3)


@pytest.mark.parametrize("output", [Z, (Z, "state"), [Z], {"logits": Z}, SimpleNamespace(logits=Z)], ids=type)
def test_outputs_it_understands(output):
    assert find_logits(output) is Z


@pytest.mark.parametrize("output", [None, {"scores": Z}, ("a", Z), torch.ones(2, dtype=torch.long), ()], ids=repr)
def test_outputs_it_does_not(output):
    with pytest.raises(LogitsError, match="finds no logits.*pass logits="):
        find_logits(output)


def gradient(shape, loss):
    z = torch.randn(shape, requires_grad=True)
    loss(z).backward()
    return z.grad


LABELS = torch.tensor([1, 0, 4, 2])
SOFTMAX_LOSSES = {
    "mean": ((4, 5), lambda z: F.cross_entropy(z, LABELS), -1),
    "sum": ((4, 5), lambda z: F.cross_entropy(z, LABELS, reduction="sum"), -1),
    "smoothed": ((4, 5), lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1), -1),
    "smoothed a lot": ((4, 5), lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.3), -1),
    "weighted": ((4, 5), lambda z: F.cross_entropy(z, LABELS, weight=torch.rand(5)), -1),
    "ignored": ((4, 5), lambda z: F.cross_entropy(z, torch.tensor([1, -100, -100, 2])), -1),
    "soft labels": ((4, 5), lambda z: F.cross_entropy(z, torch.rand(4, 5).softmax(-1)), -1),
    "log-softmax by hand": ((4, 5), lambda z: -(z[range(4), LABELS] - z.exp().sum(-1).log()).mean(), -1),
    "small z-loss": ((4, 5), lambda z: F.cross_entropy(z, LABELS) + 1e-3 * z.logsumexp(-1).square().mean(), -1),
    "tokens": ((2, 4, 5), lambda z: F.cross_entropy(z.flatten(0, 1), LABELS.repeat(2)), -1),
    "tokens, as many as classes": ((2, 4, 4), lambda z: F.cross_entropy(z.flatten(0, 1), LABELS.repeat(2) % 4), -1),
    "segmentation": ((2, 5, 3, 3), lambda z: F.cross_entropy(z, torch.randint(0, 5, (2, 3, 3))), 1),
    "half precision": ((4, 5), lambda z: F.cross_entropy(z.bfloat16(), LABELS), -1),
}


@pytest.mark.parametrize("case", SOFTMAX_LOSSES)
def test_the_gradient_tells_where_the_classes_are(case):
    shape, loss, dimension = SOFTMAX_LOSSES[case]
    assert class_dimension(gradient(shape, loss)) == dimension


@pytest.mark.parametrize("case", SOFTMAX_LOSSES)
@pytest.mark.parametrize("size", [0.01, 1.0, 8.0])
def test_a_softmax_of_the_logits_themselves_passes(case, size):
    shape, loss, dimension = SOFTMAX_LOSSES[case]
    z = (size * torch.randn(shape)).requires_grad_()
    loss(z).backward()
    check_scale(z, z.grad, dimension)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0, 10.0])
def test_a_temperature_is_found(temperature):
    z = torch.randn(4, 5, requires_grad=True)
    F.cross_entropy(z / temperature, LABELS, weight=torch.rand(5)).backward()
    with pytest.raises(LogitsError, match=f"these logits times {1 / temperature:.3g}.*pass logits="):
        check_scale(z, z.grad, -1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: F.mse_loss(z, torch.randn(4, 5)),
        lambda z: F.binary_cross_entropy_with_logits(z, torch.rand(4, 5)),
        lambda z: z.square().sum(),
    ],
    ids=["mse", "independent sigmoids", "square"],
)
def test_a_loss_that_is_no_softmax(loss):
    with pytest.raises(LogitsError, match="not a softmax cross-entropy.*does not sum to zero"):
        class_dimension(gradient((4, 5), loss))


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_one_class(shape):
    with pytest.raises(LogitsError, match="at least two classes.*zeros_like"):
        class_dimension(torch.ones(shape))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_gradient_that_says_nothing(value):
    assert class_dimension(torch.full((2, 3), value)) is None
