# shape suffixes: N = pairs of numbers, K = pairs to train or to test on, M = modulus, P = 2 * M inputs
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Addition(NamedTuple):
    """All pairs of numbers below a modulus and their sums: a rule to find in a table with holes."""

    pairs_NP: Tensor
    """Both numbers one-hot, side by side."""
    sums_N: Tensor
    train_K: Tensor
    """Which pairs to train on."""
    test_K: Tensor


def addition(modulus: int) -> Addition:
    """Two fifths of the pairs to train on, drawn from PyTorch's own stream: 5,107 of 12,769 for 113."""
    a_N, b_N = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus)).unbind(1)
    pairs_NP = torch.cat([F.one_hot(a_N, modulus), F.one_hot(b_N, modulus)], dim=1).float()
    count = int(0.4 * len(a_N))
    train_K, test_K = torch.randperm(len(a_N)).tensor_split([count])  # as random_split draws them
    return Addition(pairs_NP, (a_N + b_N) % modulus, train_K, test_K)


def mlp(modulus: int, width: int = 200) -> nn.Module:
    """2M-200-200-M with ReLU. Without biases, so that scaling all weights scales the logits and nothing else."""
    return nn.Sequential(
        nn.Linear(2 * modulus, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, modulus, bias=False),
    )
