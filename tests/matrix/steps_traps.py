"""Training steps in which something else than the loss looks like it, or where a tensor takes another way."""

import contextlib
from collections import deque
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from matrix.steps_parts import LOUD, OTHER, QUIET, SOFT, Y_QUIET, Parts, X, Y, mlp, step
from matrix.task import Case, Task, like
from torch import nn


def thrown_away(throw):
    """A loud batch goes backward, its gradients are thrown away, and another batch trains."""

    def build():
        model = mlp()

        def loss():
            F.cross_entropy(model(20 * OTHER), Y).backward()
            z = model(X)
            throw(model)
            return F.cross_entropy(z, Y)

        return Task(model, loss, lambda m: [m(like(X, m))])

    return build


def inputs_only(model):
    x = (20 * OTHER).requires_grad_()
    F.cross_entropy(model(x), Y).backward(inputs=[x])
    return F.cross_entropy(model(X), Y)


def to_features(model):
    h = model[0](20 * OTHER)
    (slope,) = torch.autograd.grad(F.cross_entropy(model[2](h.relu()), Y), h)
    return F.cross_entropy(model(X + 0 * slope.sum()), Y)


def logged_too(model):
    z = model(LOUD)
    F.cross_entropy(z, Y).item()
    return F.cross_entropy(z, Y_QUIET)


def shared_log_softmax(model):
    lp = F.log_softmax(model(LOUD), -1)
    return F.nll_loss(lp, Y_QUIET) + F.kl_div(lp, SOFT, reduction="batchmean")


def weightless(model):
    return F.cross_entropy(model(X), Y) + 0.0 * F.cross_entropy(model(LOUD), Y)


def caught():
    """One part raises, the user catches it, and other parts go on."""
    model = Parts(body=nn.Linear(8, 12), head=nn.Linear(12, 5), other=nn.Linear(8, 5))

    def loss():
        with contextlib.suppress(RuntimeError):
            model.other(X[:, :3])
        return F.cross_entropy(model.head(model.body(X).relu()), Y)

    return Task(model, loss, lambda m: [m.head(m.body(like(X, m)).relu())])


def own_keys(model):
    with torch.no_grad():
        keys = F.normalize(model(X), dim=-1)
    return F.cross_entropy(F.normalize(model(1.1 * X), dim=-1) @ keys.T / 0.2, torch.arange(len(X)))


def own_keys_logits(m):
    x = like(X, m)
    return [F.normalize(m(1.1 * x), dim=-1) @ F.normalize(m(x), dim=-1).T / 0.2]


@dataclass
class Slotted:
    __slots__ = ("hidden",)
    hidden: torch.Tensor


class Reads(nn.Module):
    """A head that unpacks what it is given."""

    def __init__(self, unpack):
        super().__init__()
        self.head, self.unpack = nn.Linear(12, 5), unpack

    def forward(self, given):
        return self.head(self.unpack(given))


def carried(pack, unpack):
    return step(
        lambda: Parts(body=nn.Linear(8, 12), head=Reads(unpack)),
        lambda m: F.cross_entropy(m.head(pack(m.body(X).relu())), Y),
        lambda m: [m.head.head(m.body(like(X, m)).relu())],
    )


class Conditioned(nn.Module):
    """Takes a context by a method, before it is called."""

    def __init__(self):
        super().__init__()
        self.condition, self.net, self.context = nn.Linear(8, 8), mlp(), None

    def forward(self, x):
        return self.net(x * self.context)


def conditioned(model):
    model.context = model.condition(OTHER)
    loss = F.cross_entropy(model(X), Y)
    model.context = None
    return loss


class Appends(nn.Module):
    """Changes what it is given: appends to a list, counts in a dict, normalises the batch in place."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, kept, counts):
        kept.append(len(kept))
        counts["n"] = counts.get("n", 0) + 1
        return self.net(x) * (1 + 0.1 * counts["n"])


def appends():
    model = Appends()

    def loss():
        kept, counts = [], {}
        z = model(X, kept, counts)
        assert kept == [0] and counts == {"n": 1}
        return F.cross_entropy(z, Y)

    return Task(model, loss, lambda m: [1.1 * m.net(like(X, m))])


def scaled_by_a_number(model):
    z = model(X)
    return F.cross_entropy(z / (z.abs().max().item() + 1e-6), Y)


def scaled_by_a_tensor_of_a_number(model):
    z = model(X)
    return F.cross_entropy(z * torch.tensor(z.std().item()), Y)


TRAPS = [
    Case("batch whose gradients are thrown away", thrown_away(lambda m: m.zero_grad())),
    Case("batch whose gradients are set to zero", thrown_away(lambda m: m.zero_grad(set_to_none=False))),
    Case("adversarial example by backward(inputs=)", step(mlp, inputs_only)),
    Case("adversarial features by autograd.grad", step(mlp, to_features)),
    Case("the same logits logged with more samples", step(mlp, logged_too, lambda m: [m(like(LOUD, m))[QUIET]])),
    Case(
        "log_softmax shared by nll_loss and kl_div",
        step(mlp, shared_log_softmax, lambda m: [m(like(LOUD, m))]),
        note="kl_div counts the samples that nll_loss ignores",
    ),
    Case("a loss of weight zero", step(mlp, weightless), note="does not count"),
    Case("an error in a module, caught", caught),
    Case("contrast with keys of the same model, under no_grad", step(mlp, own_keys, own_keys_logits)),
    Case("activations handed on in a slotted dataclass", carried(Slotted, lambda s: s.hidden)),
    Case("activations handed on in a deque", carried(lambda h: deque([h]), lambda d: d[0])),
    Case("a forward that changes the containers it is given", appends),
    Case("context set as an attribute before the call", step(Conditioned, conditioned), refused="by another way"),
    Case("logits scaled by .item()", step(mlp, scaled_by_a_number), refused="read off a tensor"),
    Case(
        "logits scaled by a tensor of .item()", step(mlp, scaled_by_a_tensor_of_a_number), refused="read off a tensor"
    ),
]
