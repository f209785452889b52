# shape suffixes: N = images, P = 64 pixels
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor


class Digits(NamedTuple):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels scaled to [0, 1]: real data that needs no download."""

    train_x_NP: Tensor
    train_y_N: Tensor
    test_x_NP: Tensor
    test_y_N: Tensor


def digits_stratified(seed: int) -> Digits:
    """A fifth of every class to test on, drawn and shuffled anew for each seed: 1,438 to train, 359 to test."""
    x_NP, y_N = _load()
    rng = np.random.default_rng(seed)
    train: list[int] = []
    test: list[int] = []
    for label in range(10):
        members = rng.permutation(np.flatnonzero(y_N.numpy() == label)).tolist()
        fifth = round(0.2 * len(members))
        test += members[:fifth]
        train += members[fifth:]
    rng.shuffle(train)
    rng.shuffle(test)
    return Digits(x_NP[train], y_N[train], x_NP[test], y_N[test])


def digits_in_order() -> Digits:
    """The first fifth as test set, in the order of the file: harder, for other people wrote it."""
    x_NP, y_N = _load()
    return Digits(x_NP[359:], y_N[359:], x_NP[:359], y_N[:359])


def _load() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y, dtype=torch.long)
