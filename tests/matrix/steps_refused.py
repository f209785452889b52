"""Rows of the matrix whose r cannot be measured: the guard must say so, and how to help it."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from matrix.steps_parts import CLASSES, HIDDEN, TARGET, WIDTH, YES, X, Y, body_and_head, mlp, picked, step
from matrix.task import Case, Task
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class OwnCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        p = z.softmax(-1)
        ctx.save_for_backward(p, y)
        return -picked(p, y).log().mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, y = ctx.saved_tensors
        return grad * (p - F.one_hot(y, p.shape[-1])) / len(p), None


class Foreign(torch.autograd.Function):
    """Doubles the logits outside of PyTorch, as a kernel of one's own would."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return torch.from_numpy(2 * z.numpy())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gate(x).softmax(-1) * self.value(x)).squeeze(-1)


def exp_sum_log(model):
    z = model(X)
    return (z.exp().sum(-1).log() - picked(z, Y)).mean()


def softmax_by_hand(model):
    e = torch.exp(model(X))
    return -torch.log(picked(e / e.sum(-1, keepdim=True), Y)).mean()


def trained_elsewhere() -> Task:
    encoder, model = nn.Linear(WIDTH, WIDTH), mlp()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)

    def loss():
        optimizer.step()
        optimizer.zero_grad()
        return F.cross_entropy(model(encoder(X)), Y)

    return Task(model, loss, lambda m: [])


def fast_weights(model):
    weights = dict(model.named_parameters())
    inner = F.cross_entropy(torch.func.functional_call(model, weights, (X,)), Y)
    slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    fast = {n: p - 5 * g for (n, p), g in zip(weights.items(), slopes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, fast, (X,)), Y)


def by_function(make: Any) -> Any:
    """A loss function that is made once, before training."""

    def build() -> Task:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, criterion = mlp(), make()
        return Task(model, lambda: criterion(model(X), Y), lambda m: [])

    return build


def compiled():
    return torch.compile(F.cross_entropy, backend="aot_eager", fullgraph=True)


def scripted():
    def criterion(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y)

    return torch.jit.script(criterion)


def none(m: nn.Module) -> list[Tensor]:
    return []


def refuse(name: str, make: Any, loss: Any, note: str = "") -> Case:
    return Case(name, step(make, loss, none), refused=HELP, note=note)


HELP = "logits=|forward="

REFUSED: list[Case] = [
    refuse("log of a sum of exp, by hand", mlp, exp_sum_log),
    refuse("softmax by hand from exp", mlp, softmax_by_hand),
    refuse("mse_loss alone", lambda: mlp(1), lambda model: F.mse_loss(model(X).squeeze(-1), TARGET)),
    refuse("mse_loss to one-hot labels", mlp, lambda model: F.mse_loss(model(X), F.one_hot(Y, CLASSES).float())),
    refuse("multi_margin_loss", mlp, lambda model: F.multi_margin_loss(model(X), Y)),
    refuse(
        "logistic loss by softplus",
        lambda: mlp(1),
        lambda model: F.softplus(-model(X).squeeze(-1) * (2 * YES - 1)).mean(),
    ),
    refuse("regression by a model with a softmax gate", Gated, lambda model: F.mse_loss(model(X), TARGET)),
    refuse("cross entropy as an own autograd.Function", mlp, lambda model: OwnCrossEntropy.apply(model(X), Y)),
    refuse(
        "own kernel in an autograd.Function between logits and loss",
        mlp,
        lambda model: F.cross_entropy(Foreign.apply(model(X)), Y),
    ),
    refuse("inner gradient step, MAML", mlp, fast_weights),
    refuse(
        "head and loss under reentrant checkpoint",
        body_and_head,
        lambda model: checkpoint(lambda h: F.cross_entropy(model.head(h), Y), model.body(X).relu(), use_reentrant=True),
        "the right r would do as well",
    ),
    refuse(
        "cross_entropy under vmap",
        mlp,
        lambda model: torch.vmap(F.cross_entropy)(model(X), Y).mean(),
        "the right r would do as well",
    ),
    Case("loss compiled to one backward", by_function(compiled), refused=HELP, note="the right r would do as well"),
    Case("scripted loss", by_function(scripted), refused=HELP, note="the right r would do as well"),
    Case(
        "input from a module that another optimizer trains",
        trained_elsewhere,
        refused="other trained parameters|cannot",
    ),
]
