"""Lightning goes by two names, ``lightning`` and ``pytorch_lightning``, each with classes of its own."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import lightning.pytorch

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def classes(name: str, within: str = "") -> tuple[type, ...]:
    """The class of that name in every package, or in this part of it, that has been imported by now; none is for it."""
    found = (getattr(sys.modules.get(package + within), name, None) for package in _NAMES)
    return tuple(c for c in found if c is not None)


class Callback(lightning.pytorch.Callback):
    """What our callbacks derive from: a callback under every name that there is."""


def join_all_names() -> None:
    """Have our callbacks be ``pytorch_lightning``'s as well, once that is there; its command line asks whose they are.

    Not decided when they are made, for a program may import us first.
    """
    missing = tuple(c for c in classes("Callback") if not issubclass(Callback, c))
    Callback.__bases__ = (*Callback.__bases__, *missing)


def misconfiguration(trainer: Any, message: str) -> Exception:
    """The exception for settings that cannot be, of the package that the trainer comes from."""
    theirs = isinstance(trainer, getattr(sys.modules.get("pytorch_lightning"), "Trainer", ()))
    home = "lightning_fabric" if theirs else "lightning.fabric"
    error: Exception = importlib.import_module(f"{home}.utilities.exceptions").MisconfigurationException(message)
    return error
