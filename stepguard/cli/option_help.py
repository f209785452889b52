"""What the demos' parsers have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Add = Callable[[str, Callable[[str], Any], Any, str, str], None]
"""Takes an option's name, type, default, metavar and help."""


def adder(parser: argparse.ArgumentParser) -> Add:
    """Adds options to the parser whose help tells their default, if they have one."""

    def add(name: str, kind: Callable[[str], Any], default: Any, metavar: str, text: str) -> None:
        shown = "" if default is None else f" (default: {default:,})"
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=text + shown)

    return add


def add_log_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-dir``."""
    parser.add_argument(
        "--log-dir",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="each demo makes a new folder run-1, run-2, ... in it (default: runs/demo)",
    )


def refuse_without(parser: argparse.ArgumentParser, packages: Mapping[str, str]) -> None:
    """Stop here if one of these is not installed: modules to the packages that bring them."""
    missing = [package for module, package in packages.items() if find_spec(module) is None]
    if missing:
        parser.error(f"the demo needs {' and '.join(missing)}: pip install 'stepguard[demo]'")


def fresh_folder(parser: argparse.ArgumentParser, root: Path) -> Path:
    """Make the first of run-1, run-2, ... that does not exist.

    Never an old folder again: TensorBoard would draw the curves of both runs as one, and what is in
    there may not be ours to delete.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        return _first_free(root)
    except OSError as error:
        parser.error(f"--log-dir: no folder can be made in {root} ({error.strerror}); choose another")


def _first_free(root: Path) -> Path:
    number = 1
    while True:
        try:
            (root / f"run-{number}").mkdir()
            return root / f"run-{number}"
        except FileExistsError:
            number += 1
