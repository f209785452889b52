"""Slopes behind a wide head, a slice of classes at a time: right for every tail, dense where slices would not do."""

import pytest
import torch
import torch.nn.functional as F
from matrix.task import Case, Task, run
from torch import nn

from stepguard.probe import lookout, softmax, wide_head

V, WIDTH, ROWS, LENGTH = 23, 8, 4, 5
TOKENS = torch.randint(0, V, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, V, (ROWS, LENGTH), generator=torch.Generator().manual_seed(2))
LABELS[0, 1:4] = -100
MASK = LABELS >= 0


class LM(nn.Module):
    def __init__(self, bias=False, tied=True, cap=None, scale=None):
        super().__init__()
        self.embedding, self.body = nn.Embedding(V, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.head = nn.Linear(WIDTH, V, bias=bias)
        self.cap, self.scale = cap, scale
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens):
        z = self.head(self.body(self.embedding(tokens)))
        z = z if self.scale is None else z * self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)


class ByProduct(LM):
    def forward(self, tokens):
        return self.body(self.embedding(tokens)) @ self.embedding.weight.t()


class WithLoss(LM):
    def forward(self, tokens):
        z = super().forward(tokens)
        return F.cross_entropy(z[..., :-1, :].contiguous().view(-1, V).float(), tokens[..., 1:].reshape(-1)), z


def shifted(z):
    return F.cross_entropy(z[:, :-1].contiguous().view(-1, V), TOKENS[:, 1:].reshape(-1))


def case(loss=shifted, logits=lambda z: z[:, :-1], model=LM, **settings):
    def build():
        net = model(**settings)
        if model is WithLoss:
            return Task(net, lambda: net(TOKENS)[0], lambda m: [logits(m(TOKENS)[1])])
        return Task(net, lambda: loss(net(TOKENS)), lambda m: [logits(m(TOKENS))])

    return Case("", build)


def flat(z):
    return z.flatten(0, 1)


SLICED = {
    "tied": case(),
    "own weight and bias": case(tied=False, bias=True),
    "by a matrix product": case(model=ByProduct),
    "soft cap": case(cap=3.0),
    "scaled": case(scale=0.25),
    "scaled by a tensor": case(scale=torch.tensor(0.25)),
    "loss inside": case(model=WithLoss),
    "plain": case(lambda z: F.cross_entropy(z.flatten(0, 1), LABELS.flatten()), lambda z: z[MASK]),
    "reshaped to one size that is told": case(
        lambda z: F.cross_entropy(z.reshape(ROWS * LENGTH, -1), LABELS.flatten()), lambda z: z[MASK]
    ),
    "classes in dimension 1": case(lambda z: F.cross_entropy(z.transpose(1, 2), LABELS), lambda z: z[MASK]),
    "by a mask": case(lambda z: F.cross_entropy(z[MASK], LABELS[MASK]), lambda z: z[MASK]),
    "last token": case(lambda z: F.cross_entropy(z[:, -1], TOKENS[:, 0]), lambda z: z[:, -1]),
    "temperature": case(lambda z: F.cross_entropy(z[:, -1] / 0.3, TOKENS[:, 0]), lambda z: z[:, -1] / 0.3),
    "log_softmax by hand": case(
        lambda z: -z.log_softmax(-1).flatten(0, 1)[torch.arange(ROWS * LENGTH), TOKENS.flatten()].mean(), flat
    ),
    "logsumexp by hand": case(
        lambda z: (z.logsumexp(-1) - z.gather(-1, TOKENS[..., None])[..., 0]).mean(), lambda z: z
    ),
    "z-loss": case(lambda z: shifted(z) + 1e-3 * z.logsumexp(-1).pow(2).mean(), lambda z: z),
}
DENSE = {
    "padded vocabulary cut": case(
        lambda z: F.cross_entropy(flat(z[..., :-3]), TOKENS.flatten() % (V - 3)), lambda z: flat(z[..., :-3])
    ),
    "classes turned round": case(
        lambda z: F.cross_entropy(flat(z.flip(-1)), TOKENS.flatten()), lambda z: flat(z.flip(-1))
    ),
    "a bias of its own": case(
        lambda z: F.cross_entropy(flat(z + torch.arange(V) * z.mean()), TOKENS.flatten()),
        lambda z: flat(z + torch.arange(V) * z.mean()),
    ),
    "centred": case(
        lambda z: F.cross_entropy(flat(z / z.std(-1, keepdim=True)), TOKENS.flatten()),
        lambda z: flat(z / z.std(-1, keepdim=True)),
    ),
    "changed in place": case(lambda z: shifted(z.mul_(3)), lambda z: 3 * z[:, :-1]),
}


@pytest.fixture
def columns(monkeypatch):
    """Every model's head counts as wide; the slices that were made."""
    made, make = [], wide_head.WideHead.columns

    def counted(self, start, stop):
        made.append((start, stop))
        return make(self, start, stop)

    monkeypatch.setattr(wide_head, "WIDE", 16)
    monkeypatch.setattr(softmax, "_COLUMNS", 7)
    monkeypatch.setattr(wide_head.WideHead, "columns", counted)
    return made


@pytest.mark.parametrize("name", SLICED)
def test_slices_give_the_same_r(name, columns):
    for found in run(SLICED[name]):
        assert found.r == pytest.approx(found.reference, rel=1e-4), found.unmeasured
        assert found.estimator == "forward"
    assert set(columns) == {(0, 7), (7, 14), (14, 21), (21, 23)}


@pytest.mark.parametrize("name", DENSE)
def test_what_cannot_be_sliced_is_measured_densely(name, columns):
    for found in run(DENSE[name]):
        assert found.r == pytest.approx(found.reference, rel=1e-4), found.unmeasured
        assert found.estimator == "forward"
    assert not columns


def test_no_slope_is_made_for_all_classes_at_once(columns, monkeypatch):
    made = []
    original = lookout.Lookout.__torch_function__

    def watched(self, function, types, args=(), kwargs=None):
        result = original(self, function, types, args, kwargs)
        if isinstance(result, torch.Tensor) and result.is_floating_point() and result.shape[-1:] == (V,):
            made.append(torch.autograd.forward_ad.unpack_dual(result).tangent is not None)
        return result

    monkeypatch.setattr(lookout.Lookout, "__torch_function__", watched)
    run(SLICED["tied"], steps=1)
    assert made and not any(made)
