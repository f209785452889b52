"""Rows of the matrix that differ in the training step: what it does beside the loss, and what is around it."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from matrix.steps_calls import CALLS
from matrix.steps_losses import LOSSES
from matrix.steps_parts import CLASSES, OTHER, WIDTH, YES, N, Parts, X, Y, frozen, mlp, net, picked, step
from matrix.steps_traps import TRAPS
from matrix.task import Case, Task, binary, like
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

# More in the step than the loss.


def logged_loss(model):
    loss = F.cross_entropy(model(X), Y)
    F.cross_entropy(model(10 * OTHER), Y).item()
    return loss


def logged_metrics(model):
    logits = model(X)
    loss = F.cross_entropy(logits, Y)
    F.cross_entropy(10 * logits, Y).item(), logits.argmax(-1).eq(Y).float().mean().item()
    return loss


def validated(model):
    model.eval()
    with torch.no_grad():
        F.cross_entropy(model(10 * X), Y).item()
    model.train()
    return F.cross_entropy(model(X), Y)


def predicted(model):
    model(10 * X).softmax(-1)
    return F.cross_entropy(model(X), Y)


def adversarial() -> Task:
    model, kept = mlp(), []

    def loss():
        x = X.clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(10 * x), Y), x)
        kept[:] = [(X + 0.1 * slope.sign()).detach()]
        return F.cross_entropy(model(kept[0]), Y)

    return Task(model, loss, lambda m: [m(like(kept[0], m))])


def needs_grad(model):
    return F.cross_entropy(model(X.clone().requires_grad_()), Y)


def gradient_penalty(model):
    x = X.clone().requires_grad_()
    loss = F.cross_entropy(model(x), Y)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + slope.pow(2).sum()


class HiddenScale(torch.autograd.Function):
    """Doubles the logits, and says that its gradient is one."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return 2 * z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def features() -> Task:
    extractor, model = frozen(nn.Linear(WIDTH, WIDTH)), mlp()
    logits = lambda m: [m(like(extractor(X), m))]  # noqa: E731
    return Task(model, lambda: F.cross_entropy(model(extractor(X)), Y), logits)


def functional(model):
    return F.cross_entropy(torch.func.functional_call(model, dict(model.named_parameters()), (X,)), Y)


BESIDE = [
    Case("another cross_entropy, under grad, only logged", step(mlp, logged_loss)),
    Case("metrics of the same logits", step(mlp, logged_metrics)),
    Case("validation under no_grad before the loss", step(mlp, validated)),
    Case("a prediction under grad that is not trained on", step(mlp, predicted)),
    Case("input that requires grad", step(mlp, needs_grad)),
    Case("adversarial example by the gradient of the input", adversarial),
    Case("gradient penalty", step(mlp, gradient_penalty)),
    Case(
        "autograd.Function between logits and loss, its gradient untrue",
        step(mlp, lambda model: F.cross_entropy(HiddenScale.apply(model(X)), Y), lambda m: [2 * m(like(X, m))]),
        note="a refusal would do as well",
    ),
    Case("frozen feature extractor outside the attached model", features),
    Case("torch.func.functional_call in the loop", step(mlp, functional), note="a refusal would do as well"),
]

# Teachers, queues.


def distillation(both_losses: bool) -> Any:
    def build() -> Task:
        model, teacher = mlp(), frozen(mlp())

        def loss():
            student = model(X)
            with torch.no_grad():
                target = F.softmax(teacher(X) / 4, dim=-1)
            kl = F.kl_div(F.log_softmax(student / 4, dim=-1), target, reduction="batchmean") * 16
            return kl + F.cross_entropy(student, Y) if both_losses else kl

        return Task(model, loss, lambda m: [m(like(X, m)) / (1 if both_losses else 4)])

    return build


def teacher_inside() -> Task:
    model = Parts(net=mlp(), teacher=frozen(mlp()))

    def loss():
        target = model.teacher(X).softmax(-1)
        return F.kl_div(model.net(X).log_softmax(-1), target, reduction="batchmean")

    return Task(model, loss, net)


def mean_teacher() -> Task:
    model = mlp()
    teacher = frozen(copy.deepcopy(model))

    @torch.no_grad()
    def follow():
        for old, new in zip(teacher.parameters(), model.parameters(), strict=True):
            old.lerp_(new, 0.1)

    def loss():
        follow()
        student = model(X)
        consistency = F.mse_loss(student.softmax(-1), teacher(X + 0.1).softmax(-1).detach())
        return F.cross_entropy(student, Y) + consistency

    return Task(model, loss, lambda m: [m(like(X, m))])


def momentum_contrast() -> Task:
    model, kept = Parts(query=mlp(), key=frozen(mlp())), []
    model.register_buffer("queue", F.normalize(torch.randn(4 * N, CLASSES), dim=-1))

    def similarities(m, x, keys):
        q = F.normalize(m.query(x), dim=-1)
        return torch.cat([(q * keys).sum(-1, keepdim=True), q @ m.queue.clone().t()], -1) / 0.1

    @torch.no_grad()
    def keys():
        for old, new in zip(model.key.parameters(), model.query.parameters(), strict=True):
            old.mul_(0.9).add_(new, alpha=0.1)
        return F.normalize(model.key(OTHER), dim=-1)

    def loss():
        kept[:] = [keys()]
        logits = similarities(model, X, kept[0])
        model.queue.copy_(torch.cat([kept[0], model.queue])[: 4 * N])
        return F.cross_entropy(logits, torch.zeros(N, dtype=torch.long))

    return Task(model, loss, lambda m: [similarities(m, like(X, m), like(kept[0], m))])


def info_nce(model):
    a, b = F.normalize(model(X), dim=-1), F.normalize(model(OTHER), dim=-1)
    return F.cross_entropy(a @ b.t() / 0.1, torch.arange(N))


def nt_xent(m: Any, x: Tensor = X, other: Tensor = OTHER) -> Tensor:
    z = F.normalize(m(torch.cat([x, other])), dim=-1)
    return (z @ z.t() / 0.5).masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)


def off_diagonal(m: Any) -> list[Tensor]:
    z = nt_xent(m, like(X, m), like(OTHER, m))
    return [z[~torch.eye(2 * N, dtype=torch.bool)].view(2 * N, -1)]


TEACHERS = [
    Case("distillation from a teacher outside, T = 4, and cross_entropy", distillation(True)),
    Case("distillation alone, T = 4", distillation(False)),
    Case("distillation from a frozen teacher in the attached model", teacher_inside),
    Case("mean teacher", mean_teacher),
    Case("momentum contrast with a queue", momentum_contrast),
    Case(
        "InfoNCE within the batch",
        step(
            mlp,
            info_nce,
            lambda m: [F.normalize(m(like(X, m)), dim=-1) @ F.normalize(m(like(OTHER, m)), dim=-1).t() / 0.1],
        ),
    ),
    Case(
        "NT-Xent, the diagonal masked",
        step(mlp, lambda model: F.cross_entropy(nt_xent(model), torch.arange(2 * N).roll(N)), off_diagonal),
    ),
]

# What is around the step.


class Counting(TorchFunctionMode):
    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def around(context: Any) -> Any:
    def loss(model):
        with context():
            logits = model(X)
            return F.cross_entropy(logits, Y)

    return loss


def forward_only(context: Any) -> Any:
    def loss(model):
        with context():
            logits = model(X)
        return F.cross_entropy(logits.float(), Y)

    return loss


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


def hand_written(model):
    z = model(X)
    return (z.exp().sum(-1).log() - picked(z, Y)).mean()


def compiled() -> Task:
    model, criterion = mlp(), torch.compile(F.cross_entropy, backend="eager", fullgraph=True)
    return Task(model, lambda: criterion(model(X), Y), lambda m: [m(like(X, m))])


AROUND = [
    Case("with torch.device", step(mlp, around(lambda: torch.device("cpu")))),
    Case("a TorchFunctionMode around forward and loss", step(mlp, around(Counting))),
    Case("a TorchFunctionMode around the forward only", step(mlp, forward_only(Counting))),
    Case("FLOP counter around forward and loss", step(mlp, around(lambda: FlopCounterMode(display=False)))),
    Case("activations kept on the CPU", step(mlp, around(torch.autograd.graph.save_on_cpu))),
    Case("bf16 autocast around the forward only", step(mlp, forward_only(bf16)), tolerance=0.05),
    Case("bf16 autocast around forward and loss", step(mlp, around(bf16)), tolerance=0.05),
    Case(
        "bf16 model, loss in float32",
        step(
            lambda: mlp().bfloat16(),
            lambda model: F.cross_entropy(model(X.bfloat16()).float(), Y),
            lambda m: [m(like(X.bfloat16(), m))],
        ),
        tolerance=0.05,
    ),
    Case("compiled loss, eager backend", compiled, note="a refusal would do as well"),
    Case(
        "logits= for a loss written by hand",
        step(mlp, hand_written, options={"logits": lambda z: z}),
    ),
    Case(
        "logits= for a binary loss written by hand",
        step(
            lambda: mlp(1),
            lambda model: F.softplus(-model(X).squeeze(-1) * (2 * YES - 1)).mean(),
            lambda m: [binary(m(like(X, m)))],
            options={"logits": binary},
        ),
    ),
    Case("forward= for a loss written by hand", step(mlp, hand_written, options={"forward": lambda m: m(X)})),
]

STEPS: list[Case] = [*LOSSES, *CALLS, *BESIDE, *TRAPS, *TEACHERS, *AROUND]
