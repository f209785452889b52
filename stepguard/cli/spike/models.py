# shape suffixes: N = images, P = 64 pixels, D = width
from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    """64-128-10 with ReLU."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def mlp_ln() -> nn.Module:
    """Three hidden layers of 64, LayerNorm then GELU."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


class Transformer(nn.Module):
    """One pre-LN block of width 32 over the image as a single token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(64, 32)
        self.norm_attention = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.norm_ffn = nn.LayerNorm(32)
        self.ffn = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x_NP: Tensor) -> Tensor:
        """Logits ``[N, 10]``."""
        h_N1D = self.embed(x_NP).unsqueeze(1)
        q, k, v = self.qkv(self.norm_attention(h_N1D)).chunk(3, dim=-1)
        h_N1D = h_N1D + self.out(F.scaled_dot_product_attention(q, k, v))
        h_N1D = h_N1D + self.ffn(self.norm_ffn(h_N1D))
        logits: Tensor = self.head(h_N1D.squeeze(1))
        return logits


def cnn_bn() -> nn.Module:
    """Two 1-D convolutions of 32 channels over the pixels, BatchNorm, ReLU, global average pooling."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 64)),
        nn.Conv1d(1, 32, 3, padding=1),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "mlp-ln": mlp_ln,
    "transformer": Transformer,
    "cnn-bn": cnn_bn,
}
