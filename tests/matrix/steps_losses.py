"""Rows of the matrix that differ in the loss, as people write it."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from matrix.steps_parts import (
    ALLOWED,
    CLASSES,
    IDS,
    IMAGES,
    LABELS,
    LOUD,
    MANY,
    OTHER,
    OTHER_IDS,
    PIXELS,
    QUIET,
    SOFT,
    VOCABULARY,
    WEIGHTS,
    WIDTH,
    Y_ALLOWED,
    Y_QUIET,
    YES,
    Ends,
    LossInside,
    N,
    Output,
    Parts,
    T,
    X,
    Y,
    frozen,
    mlp,
    net,
    picked,
    shifted,
    step,
    tagger,
)
from matrix.task import Case, Task, binary, like
from torch import Tensor, nn
from torch.distributions import Bernoulli

# One softmax, written in many ways.


def hand_picked(model):
    p = F.softmax(model(X), dim=-1)
    return -torch.log(p[torch.arange(N), Y]).mean()


def mixed_up() -> tuple[Tensor, Tensor]:
    order = torch.randperm(N)
    return 0.7 * X + 0.3 * X[order], Y[order]


def mixup(model):
    x, y = mixed_up()
    logits = model(x)
    return 0.7 * F.cross_entropy(logits, Y) + 0.3 * F.cross_entropy(logits, y)


def scale_first(model):
    scale = model.logit_scale.exp()
    return F.cross_entropy(scale * model.net(X), Y)


def z_loss(model):
    z = model(X)
    return F.cross_entropy(z, Y) + 1e-3 * z.logsumexp(-1).pow(2).mean()


def focal(model):
    ce = F.cross_entropy(model(X), Y, reduction="none")
    return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def confidence_penalty(model):
    logits = model(X)
    p = logits.softmax(-1)
    return F.cross_entropy(logits, Y) + 0.1 * (p * p.log()).sum(-1).mean()


def entropy(model):
    logits = model(X)
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def with_criterion(**settings: Any) -> Callable[[], nn.Module]:
    return lambda: Parts(net=mlp(), criterion=nn.CrossEntropyLoss(**settings))


def with_scale(name: str, value: float) -> Callable[[], nn.Module]:
    return lambda: Parts(net=mlp(), **{name: nn.Parameter(torch.tensor(value))})


SOFTMAX = [
    Case("cross_entropy of model(x)", step(mlp, lambda model: F.cross_entropy(model(X), Y))),
    Case("nn.CrossEntropyLoss", step(mlp, lambda model: nn.CrossEntropyLoss()(model(X), Y))),
    Case("reduction='sum'", step(mlp, lambda model: F.cross_entropy(model(X), Y, reduction="sum"))),
    Case("criterion as a submodule", step(with_criterion(), lambda model: model.criterion(model.net(X), Y), net)),
    Case(
        "criterion as a submodule, with class weights",
        step(with_criterion(weight=WEIGHTS), lambda model: model.criterion(model.net(X), Y), net),
    ),
    Case(
        "attached module is never called, its child is",
        step(lambda: Parts(net=mlp()), lambda model: F.cross_entropy(model.net(X), Y), net),
    ),
    Case(
        "log_softmax in the model, nll_loss outside",
        step(lambda: Ends(mlp(), lambda z: F.log_softmax(z, dim=1)), lambda model: F.nll_loss(model(X), Y), net),
    ),
    Case(
        "nn.LogSoftmax in the model, nn.NLLLoss outside",
        step(lambda: mlp().append(nn.LogSoftmax(-1)), lambda model: nn.NLLLoss()(model(X), Y)),
    ),
    Case("log_softmax and nll_loss", step(mlp, lambda model: F.nll_loss(F.log_softmax(model(X), dim=-1), Y))),
    Case(
        "log_softmax and gather",
        step(mlp, lambda model: -F.log_softmax(model(X), -1).gather(1, Y.unsqueeze(1)).mean()),
    ),
    Case(
        "logsumexp minus the label's logit",
        step(mlp, lambda model: ((z := model(X)).logsumexp(-1) - z.gather(-1, Y[:, None]).squeeze(-1)).mean()),
    ),
    Case(
        "softmax in the model, nll_loss of its log",
        step(lambda: Ends(mlp(), lambda z: z.softmax(-1)), lambda model: F.nll_loss(torch.log(model(X)), Y), net),
    ),
    Case(
        "nn.Softmax in the model, log(p + 1e-8)",
        step(
            lambda: mlp().append(nn.Softmax(-1)),
            lambda model: F.nll_loss(torch.log(model(X) + 1e-8), Y),
            lambda m: [m[:-1](like(X, m))],
        ),
    ),
    Case("softmax and -log(p[y])", step(mlp, hand_picked)),
    Case("soft labels", step(mlp, lambda model: F.cross_entropy(model(X), SOFT))),
    Case("soft labels by hand", step(mlp, lambda model: -(SOFT * model(X).log_softmax(-1)).sum(-1).mean())),
    Case("label smoothing", step(mlp, lambda model: F.cross_entropy(model(X), Y, label_smoothing=0.1))),
    Case("class weights", step(mlp, lambda model: F.cross_entropy(model(X), Y, weight=WEIGHTS))),
    Case("mixup", step(mlp, mixup, lambda m: [m(like(mixed_up()[0], m))])),
    Case("focal loss", step(mlp, focal)),
    Case("z-loss", step(mlp, z_loss)),
    Case("confidence penalty", step(mlp, confidence_penalty)),
    Case("entropy minimisation", step(mlp, entropy)),
    Case(
        "temperature of 4",
        step(mlp, lambda model: F.cross_entropy(model(X) / 4, Y), lambda m: [m(like(X, m)) / 4]),
    ),
    Case(
        "learned temperature",
        step(
            with_scale("T", 0.5),
            lambda model: F.cross_entropy(model.net(X) / model.T, Y),
            lambda m: [net(m)[0] / m.T],
        ),
    ),
    Case(
        "learned scale, taken before the model is called",
        step(with_scale("logit_scale", 0.7), scale_first, lambda m: [m.logit_scale.exp() * net(m)[0]]),
    ),
    Case("logits.float()", step(mlp, lambda model: F.cross_entropy(model(X).float(), Y))),
]

# Binary decisions.


def preference(model):
    chosen, rejected = model(X).squeeze(-1), model(OTHER).squeeze(-1)
    return -F.logsigmoid(chosen - rejected).mean()


def dpo() -> Task:
    model, reference = tagger(), frozen(tagger())

    def log_probs(model, ids):
        return picked(model(ids)[:, :-1].log_softmax(-1), ids[:, 1:]).sum(-1)

    def margin(model):
        with torch.no_grad():
            anchor = log_probs(reference, IDS) - log_probs(reference, OTHER_IDS)
        return 0.5 * (log_probs(model, IDS) - log_probs(model, OTHER_IDS) - anchor)

    def logits(m):
        return [binary(margin(m)), m(IDS)[:, :-1], m(OTHER_IDS)[:, :-1]]

    return Task(model, lambda: -F.logsigmoid(margin(model)).mean(), logits)


def sigmoid_focal(model):
    z = model(X)
    p, ce = torch.sigmoid(z), F.binary_cross_entropy_with_logits(z, MANY, reduction="none")
    return (ce * (1 - (p * MANY + (1 - p) * (1 - MANY))) ** 2).mean()


def discriminator() -> Task:
    model, generator = mlp(1), mlp(WIDTH)

    def loss():
        fake = generator(OTHER).detach()
        real_loss = F.binary_cross_entropy_with_logits(model(X), torch.ones(N, 1))
        return real_loss + F.binary_cross_entropy_with_logits(model(fake), torch.zeros(N, 1))

    return Task(model, loss, lambda m: [binary(m(like(x, m))) for x in (X, generator(OTHER))])


def one(m: Any) -> list[Tensor]:
    return [binary(m(like(X, m)))]


def before_sigmoid(m: Any) -> list[Tensor]:
    return [binary(m[:3](like(X, m)))]


BINARY = [
    Case(
        "binary_cross_entropy_with_logits of one logit",
        step(lambda: mlp(1), lambda model: F.binary_cross_entropy_with_logits(model(X).squeeze(-1), YES), one),
    ),
    Case(
        "nn.BCEWithLogitsLoss with pos_weight",
        step(
            lambda: mlp(1),
            lambda model: nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(model(X).flatten(), YES),
            one,
        ),
    ),
    Case("multi-label", step(mlp, lambda model: F.binary_cross_entropy_with_logits(model(X), MANY), one)),
    Case("multilabel_soft_margin_loss", step(mlp, lambda model: F.multilabel_soft_margin_loss(model(X), MANY), one)),
    Case(
        "nn.Sigmoid in the model, binary_cross_entropy outside",
        step(
            lambda: mlp(1).append(nn.Sigmoid()),
            lambda model: F.binary_cross_entropy(model(X).squeeze(-1), YES),
            before_sigmoid,
        ),
    ),
    Case(
        "sigmoid and binary_cross_entropy",
        step(lambda: mlp(1), lambda model: F.binary_cross_entropy(torch.sigmoid(model(X)).squeeze(-1), YES), one),
    ),
    Case("sigmoid focal loss", step(mlp, sigmoid_focal, one)),
    Case(
        "preference loss of a reward model",
        step(lambda: mlp(1), preference, lambda m: [binary(m(like(X, m)) - m(like(OTHER, m)))]),
    ),
    Case("DPO", dpo, note="r of the preference and of every token's softmax"),
    Case("GAN discriminator, generated samples detached", discriminator),
    Case(
        "Bernoulli policy",
        step(mlp, lambda model: -Bernoulli(logits=model(X)).log_prob(MANY).sum(-1).mean(), one),
    ),
]

# Samples and classes that do not count.


def cut_by_mask(model):
    logits = model(LOUD)
    return F.cross_entropy(logits[QUIET], Y[QUIET])


def masked_loss(model):
    losses = F.cross_entropy(model(LOUD), Y, reduction="none")
    return (losses * QUIET).sum() / QUIET.sum()


def masked_in_place(model):
    logits = model(X)
    logits[~ALLOWED] = float("-inf")
    return F.cross_entropy(logits, Y_ALLOWED)


def masked_class(model):
    logits = model(X)
    logits[:, 2] = -torch.inf
    return F.cross_entropy(logits, Y_ALLOWED)


def divided_in_place(model):
    logits = model(X)
    logits.div_(2.5)
    return F.cross_entropy(logits, Y)


def through_a_view(model):
    logits = model(X)
    flat = logits.view(-1)
    flat.mul_(2)
    return F.cross_entropy(logits, Y)


def quiet(m: Any) -> list[Tensor]:
    return [m(like(LOUD, m))[QUIET]]


def allowed(m: Any) -> list[Tensor]:
    return [z[a] for z, a in zip(m(like(X, m)), ALLOWED, strict=True)]


LEFT_OUT = [
    Case("ignore_index", step(mlp, lambda model: F.cross_entropy(model(LOUD), Y_QUIET), quiet)),
    Case(
        "ignore_index with nll_loss",
        step(mlp, lambda model: F.nll_loss(model(LOUD).log_softmax(-1), Y_QUIET, ignore_index=-100), quiet),
    ),
    Case("logits[mask]", step(mlp, cut_by_mask, quiet)),
    Case("losses multiplied by a mask", step(mlp, masked_loss, quiet)),
    Case(
        "classes masked by masked_fill",
        step(mlp, lambda model: F.cross_entropy(model(X).masked_fill(~ALLOWED, -torch.inf), Y_ALLOWED), allowed),
    ),
    Case(
        "classes masked by the dtype's lowest number",
        step(
            mlp,
            lambda model: F.cross_entropy(model(X).masked_fill(~ALLOWED, torch.finfo(X.dtype).min), Y_ALLOWED),
            allowed,
        ),
    ),
    Case(
        "classes masked by adding -1e9",
        step(mlp, lambda model: F.cross_entropy(model(X) - 1e9 * ~ALLOWED, Y_ALLOWED), allowed),
        note="a class a million nats below the largest does not count",
    ),
    Case("classes masked in place", step(mlp, masked_in_place, allowed)),
    Case(
        "one class masked in place",
        step(mlp, masked_class, lambda m: [m(like(X, m))[:, [0, 1, 3, 4]]]),
    ),
    Case("logits.div_(T)", step(mlp, divided_in_place, lambda m: [m(like(X, m)) / 2.5])),
    Case(
        "logits changed in place through a view",
        step(mlp, through_a_view, lambda m: [m(like(X, m)) * 2]),
        refused="changed in place through another one",
    ),
]

# Tokens, pixels and what the model returns.


def shifted_outside(model):
    logits = model(IDS)
    return F.cross_entropy(logits[:, :-1].contiguous().view(-1, VOCABULARY), IDS[:, 1:].contiguous().view(-1))


def connected(model):
    lengths = torch.full((N,), T), torch.full((N,), 2)
    return F.ctc_loss(model(IDS).log_softmax(-1).transpose(0, 1), IDS[:, :2].clamp(min=1), *lengths)


def segmenter() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))


def ends(end: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Ends(mlp(), end)


def inside(out: Callable[[Tensor, Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: LossInside(out)


SHAPES = [
    Case("causal LM, labels shifted outside", step(tagger, shifted_outside, shifted)),
    Case(
        "causal LM, loss inside, a tuple returned",
        step(inside(lambda loss, z: (loss, z)), lambda model: model(IDS, IDS)[0], shifted),
    ),
    Case(
        "causal LM, loss inside, a dict returned",
        step(
            inside(lambda loss, z: {"loss": loss, "logits": z}), lambda model: model(IDS, labels=IDS)["loss"], shifted
        ),
    ),
    Case(
        "causal LM, loss inside, a dataclass returned",
        step(inside(Output), lambda model: model(IDS, labels=IDS).loss, shifted),
    ),
    Case(
        "causal LM, loss inside, nothing else returned",
        step(inside(lambda loss, z: loss), lambda model: model(IDS, IDS), shifted),
    ),
    Case(
        "token classification with ignore_index",
        step(
            tagger,
            lambda model: F.cross_entropy(model(IDS).reshape(-1, VOCABULARY), LABELS.reshape(-1), ignore_index=-100),
            lambda m: [m(IDS)[LABELS != -100]],
        ),
    ),
    Case(
        "segmentation, classes second",
        step(
            segmenter,
            lambda model: F.cross_entropy(model(IMAGES), PIXELS),
            lambda m: [m(like(IMAGES, m)).movedim(1, -1)],
        ),
    ),
    Case("CTC", step(tagger, connected, lambda m: [m(IDS)])),
    Case(
        "logits under an unusual name in a dict",
        step(ends(lambda z: {"cls_scores": z}), lambda model: F.cross_entropy(model(X)["cls_scores"], Y), net),
    ),
    Case(
        "logits last in a tuple",
        step(ends(lambda z: (z.new_ones(3), z.mean(), z)), lambda model: F.cross_entropy(model(X)[-1], Y), net),
    ),
    Case(
        "logits in a dataclass",
        step(ends(lambda z: Output(z.sum(), z)), lambda model: F.cross_entropy(model(X).scores, Y), net),
    ),
]

LOSSES: list[Case] = [*SOFTMAX, *BINARY, *LEFT_OUT, *SHAPES]
