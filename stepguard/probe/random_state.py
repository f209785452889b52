from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    """Where the model lives: the device of its first parameter."""
    return next(model.parameters()).device


class RandomState(NamedTuple):
    """Every generator that a forward pass may draw from."""

    cpu: Tensor
    device: Tensor | None
    python: tuple[Any, ...]
    numpy: Any


def random_state(device: torch.device) -> RandomState:
    """Read the generators of PyTorch (CPU and ``device``), Python and, where it is loaded, NumPy."""
    numpy = sys.modules.get("numpy")
    return RandomState(
        cpu=torch.get_rng_state(),
        device=None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device),
        python=random.getstate(),
        numpy=None if numpy is None else numpy.random.get_state(),
    )


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Put the generators back to an earlier state."""
    torch.set_rng_state(state.cpu)
    if state.device is not None:
        torch.get_device_module(device).set_rng_state(state.device, device)
    random.setstate(state.python)
    if state.numpy is not None:
        sys.modules["numpy"].random.set_state(state.numpy)


@contextmanager
def replaying(state: RandomState, device: torch.device) -> Iterator[None]:
    """Draw again what was drawn from ``state`` on, then leave the generators as they were found."""
    found = random_state(device)
    try:
        set_random_state(state, device)
        yield
    finally:
        set_random_state(found, device)
