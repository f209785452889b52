"""What the demos have in common while they train and when they are done."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console

from stepguard.records import JsonLines, Recorder, TensorBoard

F = TypeVar("F")


def train_together(
    runs: Mapping[str, Callable[[tuple[Recorder, ...]], Iterator[F]]],
    folder_of: Callable[[str], Path],
    take: Callable[[str, F, TensorBoard], None],
) -> None:
    """Step i of every run before step i + 1 of any; each run is begun with a log and records of its own."""
    logs = {name: TensorBoard(folder_of(name)) for name in runs}
    lines = {name: JsonLines(folder_of(name)) for name in runs}
    training = [begin((logs[name], lines[name])) for name, begin in runs.items()]
    try:
        for frames in zip(*training, strict=True):
            for name, frame in zip(runs, frames, strict=True):
                take(name, frame, logs[name])
    finally:
        for name in runs:
            logs[name].close()
            lines[name].close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Train with a single thread.

    These models are too small to share out. On an idle machine a second thread saves up to 40% of the
    time; on a busy one, threads that wait for each other have been seen to make a step fifty times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def say_where(console: Console, folder: Path, picture: Path) -> None:
    """Tell where the picture is, and how to look at the logs."""
    for what, text in (
        ("picture", str(picture)),
        ("logs", f"stepguard dashboard {shlex.quote(str(folder))}"),
    ):
        console.print(f"{what:<8} {text}", markup=False, soft_wrap=True)


def folder_name(run: str) -> str:
    """The run's name as that of a folder.

    Example:
        >>> folder_name("AdamW + perpGrad")
        'AdamW-perpGrad'
    """
    return "-".join(run.replace("+", " ").split())
