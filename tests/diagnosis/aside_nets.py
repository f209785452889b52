"""Data and models of the runs kept aside: small enough for a run to take a second or two."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import nn

CLASSES, TOKENS, LENGTH = 10, 16, 12


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)


@functools.cache
def standardised():
    x, y = digits()
    return (x - x.mean(0)) / (x.std(0) + 0.1), y


@functools.cache
def images():
    x, y = digits()
    return ((x - 0.3) / 0.37).view(-1, 1, 8, 8), y


@functools.cache
def mislabelled():
    """Digits of which one in eight has a wrong label: what is never fitted keeps its gradient."""
    x, y = digits()
    generator = torch.Generator().manual_seed(3)
    wrong = torch.rand(len(y), generator=generator) < 0.125
    return x, torch.where(wrong, torch.randint(0, CLASSES, y.shape, generator=generator), y)


@functools.cache
def blobs(apart=1.0, number=2001, classes=5):
    """Gaussians in twenty dimensions; at 1 they overlap, at 3 a plane parts them."""
    generator = torch.Generator().manual_seed(11)
    centres = apart * torch.randn(classes, 20, generator=generator)
    y = torch.randint(0, classes, (number,), generator=generator)
    return centres[y] + torch.randn(number, 20, generator=generator), y


@functools.cache
def sequences(number=1500):
    """Tokens that go on by a stride which the first two tell; one in twenty is another token instead."""
    generator = torch.Generator().manual_seed(5)
    first, stride = torch.randint(0, TOKENS, (2, number, 1), generator=generator)
    tokens = (first + (1 + stride % 5) * torch.arange(LENGTH + 1)) % TOKENS
    noise = torch.rand(tokens.shape, generator=generator) < 0.05
    tokens = torch.where(noise, torch.randint(0, TOKENS, tokens.shape, generator=generator), tokens)
    return tokens[:, :-1], tokens[:, 1:]


def linear(inputs=20, classes=5):
    return nn.Linear(inputs, classes)


def mlp(width=64, depth=1, norm=None, inputs=64, classes=CLASSES, bends=nn.ReLU):
    layers, before = [], inputs
    for _ in range(depth):
        layers += [nn.Linear(before, width), *([norm(width)] if norm else []), bends()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, classes))


def cnn(norm=None):
    def block(before, after):
        return [nn.Conv2d(before, after, 3, padding=1), *([norm(after)] if norm else []), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, 8), *block(8, 16), nn.Flatten(), nn.Linear(64, CLASSES))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.heads = 2
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h):
        n, t, c = h.shape
        q, k, v = self.qkv(self.before_attention(h)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(n, t, c))
        return h + self.mlp(self.before_mlp(h))


class GPT(nn.Module):
    def __init__(self, width=32, depth=1):
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS, bias=False)

    def forward(self, ids):
        h = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        return self.head(self.norm(self.blocks(h)))
