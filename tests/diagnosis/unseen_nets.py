"""Data and models of the unseen runs: none of them is among the runs kept aside."""

import functools

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from torch import nn

WORDS, TOPICS, WORDS_EACH = 300, 6, 24


def _standardised(x, y):
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return (x - x.mean(0)) / (x.std(0) + 0.1), y


@functools.cache
def wine():
    """178 samples of 13 numbers, three classes, which a plane parts."""
    return _standardised(*load_wine(return_X_y=True))


@functools.cache
def tumours():
    """569 samples of 30 numbers, two classes."""
    return _standardised(*load_breast_cancer(return_X_y=True))


@functools.cache
def rows():
    """Digits as eight rows of eight pixels, ``[N, 8, 8]``."""
    x, y = load_digits(return_X_y=True)
    return (torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) - 5) / 6, torch.tensor(y)


@functools.cache
def two_tasks():
    """Which digit it is, and how dark the image, in three classes."""
    x, y = rows()
    dark = x.mean((1, 2))
    return x, torch.stack([y, torch.bucketize(dark, dark.quantile(torch.tensor([0.33, 0.67])))], 1)


@functools.cache
def papers(clear=0.35, number=2400):
    """Words of a text, of which a share is of its topic and the others are any."""
    generator = torch.Generator().manual_seed(21)
    y = torch.randint(0, TOPICS, (number,), generator=generator)
    ours = y[:, None] * (WORDS // TOPICS) + torch.randint(0, WORDS // TOPICS, (number, WORDS_EACH), generator=generator)
    common = torch.randint(0, WORDS, ours.shape, generator=generator)
    return torch.where(torch.rand(ours.shape, generator=generator) < clear, ours, common), y


@functools.cache
def counts():
    """How often each word stands in a text, ``[N, WORDS]``."""
    words, y = papers()
    return nn.functional.one_hot(words, WORDS).sum(1).float(), y


def logistic(inputs=13, classes=3):
    return nn.Linear(inputs, classes)


class BagOfWords(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, TOPICS))

    def forward(self, ids):
        return self.head(self.words(ids).mean(1))


class Recurrent(nn.Module):
    """Reads an image row by row."""

    def __init__(self, cell=nn.GRU, width=32):
        super().__init__()
        self.cell, self.head = cell(8, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class MixerBlock(nn.Module):
    def __init__(self, places, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.places = nn.Sequential(nn.Linear(places, 16), nn.GELU(), nn.Linear(16, places))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, h):
        h = h + self.places(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        return h + self.channels(self.norms[1](h))


class AttentionBlock(nn.Module):
    def __init__(self, places, width):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mix = nn.MultiheadAttention(width, 4, batch_first=True)
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, h):
        n = self.norms[0](h)
        h = h + self.mix(n, n, n, need_weights=False)[0]
        return h + self.channels(self.norms[1](h))


class Patches(nn.Module):
    """An image as sixteen patches of two by two, through blocks that mix them."""

    def __init__(self, block=AttentionBlock, width=24, depth=1):
        super().__init__()
        self.embed, self.where = nn.Linear(4, width), nn.Parameter(torch.randn(16, width) / 5)
        self.blocks = nn.Sequential(*(block(16, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        patches = x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(x), 16, 4)
        return self.head(self.norm(self.blocks(self.embed(patches) + self.where)).mean(1))


class TwoTowers(nn.Module):
    """Tells which lower half belongs to which upper half: a logit for each pair of the batch."""

    def __init__(self, width=32, scale=8.0, learned=True):
        super().__init__()
        self.upper, self.lower = (
            nn.Sequential(nn.Flatten(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, width)) for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor(scale).log(), requires_grad=learned)

    def forward(self, x):
        upper, lower = (
            nn.functional.normalize(tower(half), dim=-1)
            for tower, half in [(self.upper, x[:, :4]), (self.lower, x[:, 4:])]
        )
        return self.log_scale.exp() * upper @ lower.T


class TwoHeads(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.SiLU())
        self.digit, self.dark = nn.Linear(width, 10), nn.Linear(width, 3)

    def forward(self, x):
        h = self.body(x)
        return self.digit(h), self.dark(h)
