"""The models of the matrix: ordinary ones first, then forwards that do more than compute."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.utils.checkpoint import checkpoint

CLASSES, VOCABULARY, WIDTH = 5, 40, 16


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, WIDTH), nn.ReLU(), *middle, nn.Linear(WIDTH, CLASSES))


def deep() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.2)) for _ in range(5)]
    return mlp(*blocks)


def cnn(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, CLASSES)),
    )


def audio() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 9, stride=4), nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 8, 3, dilation=2), nn.GELU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


class Residual(nn.Module):
    def __init__(self, body: nn.Module, drop: float = 0.0):
        super().__init__()
        self.body, self.drop = body, drop

    def forward(self, x):
        h = self.body(x)
        if self.drop and self.training:
            h = h * (torch.rand(len(x), 1) >= self.drop) / (1 - self.drop)
        return x + h


def resnet() -> nn.Module:
    def block() -> nn.Module:
        conv = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2)]
        return Residual(nn.Sequential(conv[0], nn.BatchNorm2d(8), nn.ReLU(), conv[1], nn.BatchNorm2d(8)))

    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), block(), nn.ReLU(), block(), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.floor = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, CLASSES, 1)

    def forward(self, x):
        h = self.down(x)
        return self.head(torch.cat((h, self.up(self.floor(h))), 1))


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24)
        self.down = nn.Linear(24, WIDTH)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **more: Any):
        super().__init__()
        self.rnn = kind(6, WIDTH, batch_first=True, **more)
        self.head = nn.Linear(WIDTH * (2 if self.rnn.bidirectional else 1), CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Packed(Recurrent):
    def __init__(self):
        super().__init__(nn.LSTM)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.rnn(packed)[1][0][-1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h = self.embed(x)
        return self.head((h + self.attention(h, h, h)[0]).mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1, batch_first=True)
        self.embed, self.encoder = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h = self.encoder(self.embed(x), src_key_padding_mask=x == 0)
        return self.head(h.masked_fill((x == 0)[..., None], 0).mean(1))


class Translator(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.transformer = nn.Transformer(WIDTH, 2, 1, 1, 32, dropout=0.1, batch_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]).to(self.head.weight)
        h = self.embed(x)
        return self.head(self.transformer(h.flip(1), h, tgt_mask=mask, tgt_is_causal=True))


class Block(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(h))
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self, tied: bool = False, dropout: float = 0.0, reentrant: bool | None = None):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(10, WIDTH)
        self.blocks, self.norm = nn.ModuleList(Block(dropout) for _ in range(2)), nn.LayerNorm(WIDTH)
        self.head, self.reentrant = nn.Linear(WIDTH, VOCABULARY, bias=False), reentrant
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h) if self.reentrant is None else checkpoint(block, h, use_reentrant=self.reentrant)
        return self.head(self.norm(h))


class Pooled(nn.Module):
    def __init__(self, embed: nn.Module):
        super().__init__()
        self.embed, self.head = embed, nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h = self.embed(x)
        return self.head((h.sum(1) if h.ndim == 3 else h).tanh())


class Adaptive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, VOCABULARY, [10, 25], div_value=2)

    def forward(self, x, y):
        return self.softmax(self.embed(x), y).loss


class Graph(nn.Module):
    def __init__(self, edges: Tensor):
        super().__init__()
        self.edges, self.first, self.second = edges, nn.Linear(12, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        edges = self.edges.to(x.dtype)
        return torch.sparse.mm(edges, self.second(torch.sparse.mm(edges, self.first(x)).relu()))


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter, self.head = nn.Parameter(torch.randn(2, 7)), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * torch.complex(*self.filter), n=12).tanh())


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base, self.up = base.requires_grad_(False), nn.Parameter(torch.zeros(base.out_features, rank))
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / rank)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Experts(nn.Module):
    """Mixture of experts: `top` of four, or all of them with their weights."""

    def __init__(self, top: int | None = None):
        super().__init__()
        self.top, self.router = top, nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(4))

    def forward(self, x):
        share = self.router(x).softmax(-1)
        if self.top is None:
            return x + sum(share[:, [k]] * expert(x) for k, expert in enumerate(self.experts))
        share, chosen = share.topk(self.top, -1)
        share, out = share / share.sum(-1, keepdim=True) if self.top > 1 else share, torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == k)
            out.index_add_(0, rows, share[rows, slots, None] * expert(x[rows]))
        return x + out


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(12, WIDTH), nn.Tanh()), nn.Linear(WIDTH, 2)

    def forward(self, a, b):
        return self.head((self.encoder(a) - self.encoder(b)).abs())


# Forwards that do more than compute.


class Act(nn.Module):
    """Any function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class SquareWithJvp(Square):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x * x

    @staticmethod
    def jvp(ctx, t):
        return 2 * ctx.saved_tensors[0] * t


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -g


class Grid(nn.Module):
    """Straight-through rounding, of activations as a layer and of weights as a parametrization."""

    def __init__(self, fine: int):
        super().__init__()
        self.fine = fine

    def forward(self, x):
        return x + ((x * self.fine).round() / self.fine - x).detach()


class Codebook(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(8, WIDTH))

    def forward(self, x):
        nearest = torch.cdist(x, self.codes).argmin(-1)
        picked = self.codes[nearest]
        if self.training:
            with torch.no_grad():
                self.codes.index_add_(0, nearest, 0.1 * (x - picked))
        return x + (picked - x).detach()


class Outside(nn.Module):
    """Its forward reaches a parameter through a list, which the registry of parameters knows nothing of."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 4)
        self.weights = [self.weight]

    def forward(self, x):
        return (x @ self.weights[0]).tanh()


class Contrast(nn.Module):
    """Subtracts its own output, computed once more without a graph."""

    def __init__(self, graphless: Callable[[], Any]):
        super().__init__()
        self.body, self.graphless = nn.Linear(WIDTH, WIDTH), graphless

    def forward(self, x):
        with self.graphless():
            other = self.body(x).tanh()
        return self.body(x).tanh() - 3 * other.clone()


class FrozenInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = mlp().requires_grad_(False), nn.Linear(CLASSES, CLASSES)

    def forward(self, x):
        with torch.inference_mode():
            h = self.backbone(x)
        return self.head(h.clone())


class Counted(nn.Module):
    def __init__(self, warmup: int = 0):
        super().__init__()
        self.calls, self.warmup = 0, warmup

    def forward(self, x):
        self.calls += 1
        return x * min(1.0, self.calls / self.warmup) if self.warmup else x


class Generated(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        return x * torch.rand(x.shape, generator=self.generator).to(x.dtype)


class Carrying(Recurrent):
    """Goes on from the state in which the last batch left it."""

    def __init__(self):
        super().__init__(nn.LSTM)
        self.state = None

    def forward(self, x):
        h, state = self.rnn(x, self.state and tuple(s.to(x.dtype) for s in self.state))
        self.state = tuple(s.detach() for s in state)
        return self.head(h[:, -1])


class Keeping(nn.Module):
    """Keeps what passed through it, for the loss to use."""

    def forward(self, x):
        self.kept = x
        return x


class LayerDrop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            if random.random() < 0.5:
                x = layer(x)
        return x


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x * torch.from_numpy(np.random.uniform(0.5, 1.5, x.shape)).to(x.dtype)


class Sampled(nn.Module):
    """Draws its hidden state, as in a variational bottleneck."""

    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.mean(x) + F.softplus(self.spread(x)) * torch.randn(x.shape).to(x.dtype)


class InnerStep(nn.Module):
    """Adapts a fast weight by a gradient step of its own before it answers."""

    def __init__(self):
        super().__init__()
        self.body, self.fast = nn.Sequential(nn.Linear(12, WIDTH), nn.Tanh()), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        h, weight = self.body(x), self.fast.weight
        (g,) = torch.autograd.grad((h @ weight.T).pow(2).mean(), weight, create_graph=True)
        return h @ (weight - g).T


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, CLASSES, WIDTH) / 4)

    def forward(self, x):
        return torch.vmap(F.linear, in_dims=(None, 0))(x, self.weights).mean(0)
