# shape suffixes: B = batch, T = positions, D = width, V = vocabulary
"""Networks and data that several benchmarks train on."""

import functools
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h_BTD: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.before(h_BTD)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h_BTD = h_BTD + self.out(mixed.transpose(1, 2).flatten(2))
        return h_BTD + self.ffn(self.between(h_BTD))


class GPT(nn.Module):
    """Pre-LN, learned positions, a head of its own."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, positions: int = 1024):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x_BT: Tensor) -> Tensor:
        h_BTD = self.tokens(x_BT) + self.positions.weight[: x_BT.shape[1]]
        logits_BTV: Tensor = self.head(self.norm(self.blocks(h_BTD)))
        return logits_BTV


class ResBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = stride == 1 and inside == outside
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet18(width: int, classes: int = 10) -> nn.Module:
    """For 32 x 32 images, of which ``width`` is the first channel count: 64 in the paper."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inside = width
    for outside, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [ResBlock(inside, outside, stride), ResBlock(outside, outside, 1)]
        inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


@functools.cache
def python_text(limit: int = 2_000_000) -> Tensor:
    """The source of Python's own library, byte by byte: text that is there wherever the benchmark runs."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return torch.frombuffer(bytearray(found[:limit]), dtype=torch.uint8).long()


def text_batch(generator: torch.Generator, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Bytes and those that follow them, ``[B, T]`` each."""
    text = python_text()
    starts = torch.randint(len(text) - length - 1, (batch, 1), generator=generator)
    window = text[starts + torch.arange(length + 1)]
    return window[:, :-1], window[:, 1:]
