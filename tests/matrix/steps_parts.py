"""What the training steps of the matrix are made of: data, tiny models, and a way to write a case."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from matrix.task import Task, like
from torch import Tensor, nn

N, T, WIDTH, HIDDEN, CLASSES, VOCABULARY = 6, 5, 8, 12, 5, 11
G = torch.Generator().manual_seed(11)
X, OTHER, THIRD = torch.randn(3, N, WIDTH, generator=G) * torch.tensor([1.0, 1.5, 1.0]).view(3, 1, 1)
Y, Y2, Y3 = torch.randint(0, CLASSES, (3, N), generator=G)
SOFT = torch.rand(N, CLASSES, generator=G).softmax(-1)
YES, MANY = (torch.rand(N, generator=G) > 0.5).float(), (torch.rand(N, CLASSES, generator=G) > 0.5).float()
TARGET, ADVANTAGE, WEIGHTS = torch.randn(N, generator=G), torch.randn(N, generator=G), torch.arange(1.0, CLASSES + 1)
LOUD = X * torch.tensor([40.0, 1.0, 40.0, 1.0, 1.0, 40.0]).unsqueeze(-1)
"""Rows that would dominate r, and that the loss leaves out."""
QUIET, Y_QUIET = LOUD.norm(dim=-1) < 20, Y.where(LOUD.norm(dim=-1) < 20, -100)
IDS, OTHER_IDS = torch.randint(0, VOCABULARY, (2, N, T), generator=G)
LABELS = IDS.where(torch.rand(N, T, generator=G) > 0.3, -100)
IMAGES, PIXELS = torch.randn(2, 3, 4, 4, generator=G), torch.randint(0, CLASSES, (2, 4, 4), generator=G)
SERIES = torch.randn(N, T, WIDTH, generator=G)
ALLOWED = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 1, 1], [1, 0, 1, 1, 0]]).bool().repeat(2, 1)
Y_ALLOWED = ALLOWED.float().argmax(-1)  # the first class that is allowed


def step(make: Callable[[], nn.Module], loss: Callable[[Any], Tensor], logits: Any = None, **more: Any) -> Any:
    """A build: how the model is made, the user's code with it, and the reference (by default `model(X)`)."""

    def build() -> Task:
        model = make()
        return Task(model, lambda: loss(model), logits or (lambda m: [m(like(X, m))]), **more)

    return build


def mlp(out: int = CLASSES) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out))


def tagger(out: int = VOCABULARY) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, out))


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False).eval()


class Parts(nn.Module):
    """Modules and parameters under one roof, with no forward of its own: as in a LightningModule."""

    def __init__(self, **parts: Any):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def body_and_head(out: int = CLASSES) -> nn.Module:
    return Parts(body=nn.Linear(WIDTH, HIDDEN), head=nn.Linear(HIDDEN, out))


class Ends(nn.Module):
    """A network and what the model makes of its logits."""

    def __init__(self, net: nn.Module, end: Callable[[Tensor], Any]):
        super().__init__()
        self.net, self.end = net, end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.net(x))


@dataclass
class Output:
    loss: Tensor
    scores: Tensor


class LossInside(nn.Module):
    """A causal language model that shifts its labels and computes its own loss."""

    def __init__(self, out: Callable[[Tensor, Tensor], Any]):
        super().__init__()
        self.net, self.out = tagger(), out

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        logits = self.net(ids)
        loss = F.cross_entropy(logits[:, :-1].contiguous().view(-1, VOCABULARY), labels[:, 1:].flatten())
        return self.out(loss, logits)


def net(m: Any) -> list[Tensor]:
    return [m.net(like(X, m))]


def shifted(m: Any) -> list[Tensor]:
    return [getattr(m, "net", m)(IDS)[:, :-1]]


def picked(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(-1, y.unsqueeze(-1)).squeeze(-1)
