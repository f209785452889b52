"""Types for argparse, whose refusals say what came and what would do."""

from __future__ import annotations

import argparse
import math

LARGEST_RATE = 1e37
"""Adam multiplies the learning rate by ten at its first step; float32 must hold that too."""


def positive(text: str) -> float:
    """A number above 0."""
    value = _number(float, text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return value


def rate(text: str) -> float:
    """A learning rate that Adam can reckon with."""
    value = positive(text)
    if value > LARGEST_RATE:
        raise argparse.ArgumentTypeError(f"must be at most {LARGEST_RATE:g}, got {text}")
    return value


def count(text: str) -> int:
    """A whole number from 1 on."""
    value = _number(int, text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(value)


def whole(text: str) -> int:
    """A whole number from 0 on."""
    value = _number(int, text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return int(value)


def seed(text: str) -> int:
    """A whole number that PyTorch takes for a seed, as it does those that come after it."""
    value = whole(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2**63, got {text}")
    return value


def _number(kind: type[int] | type[float], text: str) -> float:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}") from None
