"""Rows of the matrix that differ in which modules the training step calls, and how often."""

from typing import Any

import torch
import torch.nn.functional as F
from matrix.steps_parts import (
    ADVANTAGE,
    CLASSES,
    HIDDEN,
    IDS,
    OTHER,
    SERIES,
    TARGET,
    THIRD,
    VOCABULARY,
    WIDTH,
    Y2,
    Y3,
    N,
    Parts,
    T,
    X,
    Y,
    body_and_head,
    mlp,
    step,
)
from matrix.task import Case, like
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.checkpoint import checkpoint


class TwoHeads(nn.Module):
    def __init__(self, second: int = CLASSES, gain: float = 1.0):
        super().__init__()
        self.body, self.head, self.gain = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES), gain
        self.second = nn.Linear(HIDDEN, second)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        return self.head(h), self.second(self.gain * h)


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text, self.logit_scale = mlp(), mlp(), nn.Parameter(torch.tensor(2.6))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)


def both(m: Any) -> list[Tensor]:
    return list(m(like(X, m)))


def first(m: Any) -> list[Tensor]:
    return [m(like(X, m))[0]]


def two_views(m: Any) -> list[Tensor]:
    return [m(like(X, m)), m(like(OTHER, m))]


# Several modules under one roof.


def listed(model):
    return F.cross_entropy(model[1](model[0](X).relu()), Y)


def named(model):
    h = model["body"](X).relu()
    return F.cross_entropy(model["head"](h), Y)


def chain(model):
    h = torch.cat([model.embed(IDS), SERIES], -1)
    h = model.mix(h.transpose(1, 2)).relu().transpose(1, 2)
    return F.cross_entropy(model.head(h.mean(1)), Y)


def chained(m: Any) -> list[Tensor]:
    h = torch.cat([m.embed(IDS), like(SERIES, m)], -1)
    return [m.head(m.mix(h.transpose(1, 2)).relu().mean(-1))]


def attention(model, series: Tensor = SERIES) -> Tensor:
    h = model.body(series).tanh()
    weights = F.softmax(20 * model.score(h), dim=1)
    return model.head((weights * h).sum(1))


def scaled_by_detached(m: Any, x: Tensor = X) -> Tensor:
    logits = m(x)
    return 3 * logits / logits.detach().std()


def dropped(model):
    h = F.dropout(model.body(X).relu(), 0.5)
    return F.cross_entropy(model.head(h), Y)


def tied(model):
    logits = model.body(model.embed(IDS)) @ model.embed.weight.t()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def recurrent(model):
    h, loss = torch.zeros(N, HIDDEN), 0.0
    for t in range(T - 1):
        h = model.cell(model.embed(IDS[:, t]), h)
        loss = loss + F.cross_entropy(model.head(h), IDS[:, t + 1])
    return loss / (T - 1)


def unrolled(m: Any) -> list[Tensor]:
    h, logits = like(torch.zeros(N, HIDDEN), m), []
    for t in range(T - 1):
        h = m.cell(m.embed(IDS[:, t]), h)
        logits.append(m.head(h))
    return logits


def in_chunks(model):
    hidden, loss = model.body(SERIES).flatten(0, 1), 0.0
    for h, y in zip(hidden.chunk(3), IDS.flatten().chunk(3), strict=True):
        loss = loss + F.cross_entropy(model.head(h), y, reduction="sum")
    return loss / IDS.numel()


def checkpointed(model):
    loss = lambda h: F.cross_entropy(model.head(h), Y)  # noqa: E731
    return checkpoint(loss, model.body(X).relu(), use_reentrant=False)


def cut_in_two(model):
    """The head's backward runs first, to free its memory; the body's is given the gradient by hand."""
    hidden = model.body(X).relu()
    leaf = hidden.detach().requires_grad_()
    F.cross_entropy(model.head(leaf), Y).backward()
    return (hidden * leaf.grad).sum()


def clip(model):
    image, text = model(X, OTHER)
    logits, labels = model.logit_scale.exp() * image @ text.t(), torch.arange(N)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2


def clipped(m: Any) -> list[Tensor]:
    image, text = m(like(X, m), like(OTHER, m))
    logits = m.logit_scale.exp() * image @ text.t()
    return [logits, logits.t()]


def linear(m: Any) -> list[Tensor]:
    return [m.head(m.body(like(X, m)).relu())]


MODULES = [
    Case(
        "body and head in a ModuleList",
        step(
            lambda: nn.ModuleList([nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, CLASSES)]),
            listed,
            lambda m: [m[1](m[0](like(X, m)).relu())],
        ),
    ),
    Case(
        "body and head in a ModuleDict",
        step(
            lambda: nn.ModuleDict({"body": nn.Linear(WIDTH, HIDDEN), "head": nn.Linear(HIDDEN, CLASSES)}),
            named,
            lambda m: [m["head"](m["body"](like(X, m)).relu())],
        ),
    ),
    Case(
        "three modules, with cat, transpose and a mean between them",
        step(
            lambda: Parts(
                embed=nn.Embedding(VOCABULARY, WIDTH), mix=nn.Linear(T, T), head=nn.Linear(2 * WIDTH, CLASSES)
            ),
            chain,
            chained,
        ),
    ),
    Case(
        "dropout between the modules",
        step(body_and_head, dropped, lambda m: [m.head(F.dropout(m.body(like(X, m)).relu(), 0.5))]),
    ),
    Case(
        "attention written in the step",
        step(
            lambda: Parts(body=nn.Linear(WIDTH, HIDDEN), score=nn.Linear(HIDDEN, 1), head=nn.Linear(HIDDEN, CLASSES)),
            lambda model: F.cross_entropy(attention(model), Y),
            lambda m: [attention(m, like(SERIES, m))],
        ),
        note="the attention's own softmax is not the loss's",
    ),
    Case(
        "logits divided by their detached standard deviation",
        step(
            mlp,
            lambda model: F.cross_entropy(scaled_by_detached(model), Y),
            lambda m: [scaled_by_detached(m, like(X, m))],
        ),
        estimator="difference",
        tolerance=0.05,
        note="what is detached moves too",
    ),
    Case(
        "head tied to the embedding by hand",
        step(
            lambda: Parts(embed=nn.Embedding(VOCABULARY, WIDTH), body=nn.Linear(WIDTH, WIDTH)),
            tied,
            lambda m: [(m.body(m.embed(IDS)) @ m.embed.weight.t())[:, :-1]],
        ),
    ),
    Case(
        "recurrent cell in a loop",
        step(
            lambda: Parts(
                embed=nn.Embedding(VOCABULARY, WIDTH),
                cell=nn.GRUCell(WIDTH, HIDDEN),
                head=nn.Linear(HIDDEN, VOCABULARY),
            ),
            recurrent,
            unrolled,
        ),
    ),
    Case(
        "head and loss in chunks",
        step(lambda: body_and_head(VOCABULARY), in_chunks, lambda m: [m.head(m.body(like(SERIES, m)))]),
    ),
    Case("head and loss under checkpoint", step(body_and_head, checkpointed, linear)),
    Case(
        "backward of the head first, of the body by hand",
        step(body_and_head, cut_in_two, linear),
        estimator="difference",
        tolerance=0.05,
        note="a refusal would do as well",
    ),
    Case(
        "parameters only, no module is called",
        step(
            lambda: nn.ParameterDict({"w": torch.randn(WIDTH, CLASSES), "b": torch.zeros(CLASSES)}),
            lambda model: F.cross_entropy(X @ model["w"] + model["b"], Y),
            lambda m: [like(X, m) @ m["w"] + m["b"]],
        ),
        note="a refusal would do as well",
    ),
    Case("CLIP: two encoders, normalised, a learned scale, both directions", step(Clip, clip, clipped)),
]

# Several softmaxes, several calls.


def two_losses(weight: float) -> Any:
    def loss(model):
        logits, second = model(X)
        return F.cross_entropy(logits, Y) + weight * F.cross_entropy(second, Y2)

    return loss


def multi_task(model):
    logits, value = model(X)
    return F.cross_entropy(logits, Y) + F.mse_loss(value.squeeze(-1), TARGET)


def backward_twice(model):
    logits, second = model(X)
    F.cross_entropy(logits, Y).backward(retain_graph=True)
    return F.cross_entropy(second, Y2)


def accumulated(model):
    for x, y in ((X, Y), (OTHER, Y2)):
        (F.cross_entropy(model(x), y) / 3).backward()
    return F.cross_entropy(model(THIRD), Y3) / 3


def of_a_list(model):
    return sum(F.cross_entropy(model(x), y) for x, y in ((X, Y), (OTHER, Y2), (THIRD, Y3))) / 3


def concatenated(model):
    return F.cross_entropy(torch.cat([model(X), model(OTHER)]), torch.cat([Y, Y]))


def r_drop(model):
    first, second = model(X), model(X)
    p, q = F.log_softmax(first, -1), F.log_softmax(second, -1)
    kl = F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(q, p, log_target=True, reduction="batchmean")
    return F.cross_entropy(first, Y) + F.cross_entropy(second, Y) + kl


def policy(model):
    dist = Categorical(logits=model(X))
    action = dist.sample()
    return -(dist.log_prob(action) * ADVANTAGE).mean() - 0.01 * dist.entropy().mean()


def policy_of_probabilities(model):
    dist = Categorical(model(X))
    return -(dist.log_prob(dist.sample()) * ADVANTAGE).mean()


SEVERAL = [
    Case("auxiliary head", step(lambda: TwoHeads(gain=5.0), two_losses(0.3), both)),
    Case("cross_entropy and mse_loss of two heads", step(lambda: TwoHeads(1, 5.0), multi_task, first)),
    Case("two heads, a backward for each", step(lambda: TwoHeads(gain=5.0), backward_twice, both)),
    Case(
        "model called for two views",
        step(mlp, lambda model: F.cross_entropy(model(X), Y) + F.cross_entropy(model(OTHER), Y), two_views),
    ),
    Case("two views in one cross_entropy", step(mlp, concatenated, two_views)),
    Case("several losses summed", step(mlp, of_a_list, lambda m: [*two_views(m), m(like(THIRD, m))])),
    Case("three micro-batches", step(mlp, accumulated, lambda m: [*two_views(m), m(like(THIRD, m))])),
    Case("R-Drop", step(lambda: mlp().insert(2, nn.Dropout(0.3)), r_drop, lambda m: [m(like(X, m)), m(like(X, m))])),
    Case("policy gradient with entropy bonus, Categorical(logits=)", step(mlp, policy)),
    Case(
        "policy gradient, Categorical(probs=) of nn.Softmax",
        step(lambda: mlp().append(nn.Softmax(-1)), policy_of_probabilities, lambda m: [m[:3](like(X, m))]),
    ),
]

CALLS: list[Case] = [*MODULES, *SEVERAL]
