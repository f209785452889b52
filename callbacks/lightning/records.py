from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from stepguard.callbacks.lightning.names import classes
from stepguard.records import JsonLines


def lines_beside(trainer: Trainer, said: dict[str, Any], name: str, logged_step: Callable[[], int]) -> JsonLines | None:
    """The records of a run, beside what its logger writes; None where none writes to a disk, and on other ranks.

    Args:
        trainer: Whose loggers they are.
        said: For the first line.
        name: Of the optimizer, where there are several.
        logged_step: Where on the axis of the loggers this moment lies.
    """
    folder = folder_of(trainer) if trainer.is_global_zero else None
    return JsonLines(folder, said, name, logged_step) if folder else None


def folder_of(trainer: Trainer) -> Path | None:
    """The folder of a run: TensorBoard's if there is one, else the first logger's, where Lightning's checkpoints go."""
    # Not trainer.log_dir: all ranks would have to ask for it, and without a logger it is there as well.
    boards = [logger for logger in trainer.loggers if isinstance(logger, classes("TensorBoardLogger", ".loggers"))]
    found = (_folder(logger) for logger in (*boards, *trainer.loggers))
    return next((Path(folder) for folder in found if folder and "://" not in folder), None)


def _folder(logger: Logger) -> str | None:
    if own := getattr(logger, "log_dir", None):
        return str(own)
    parts = [str(part) for part in (logger.name, logger.version) if part is not None]
    return os.path.join(logger.save_dir, *parts) if logger.save_dir else None
