from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from stepguard.records import JsonLines


def lines_beside(
    trainer: Trainer | None, args: TrainingArguments, state: TrainerState, said: dict[str, Any]
) -> JsonLines | None:
    """The records of a run, beside TensorBoard's file, or else where the trainer saves; None but on the first process.

    Args:
        trainer: Whose run it is; None where it could not be found.
        args: Its arguments.
        state: Its state, which counts the steps that are done.
        said: For the first line.
    """
    if not state.is_world_process_zero:
        return None
    folder = _board(trainer) or args.output_dir
    return JsonLines(folder, said, logged_step=lambda: state.global_step + 1) if folder else None


def _board(trainer: Trainer | None) -> Path | None:
    callbacks = trainer.callback_handler.callbacks if trainer else []
    writers = [callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)]
    # A writer of tensorboardX has another name for it.
    found = (getattr(writer, "log_dir", None) or getattr(writer, "logdir", None) for writer in writers)
    return next((Path(folder) for folder in found if folder), None)
