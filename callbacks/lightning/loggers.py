from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from stepguard.callbacks.lightning.optimizers import Own
from stepguard.records import Event

_failed: WeakSet[Logger] = WeakSet()


def log_every(trainer: Trainer) -> int:
    """Steps from one logging to the next, as the trainer was told."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by the logger connector
    return every


def axis(trainer: Trainer, ended: bool = True) -> int:
    """Where a batch lies on the axis of ``self.log``, which begins at 0.

    Optimizer steps; in manual optimization batches, for ``trainer.global_step`` counts the steps of all optimizers
    together there.

    Args:
        trainer: Whose batch it is.
        ended: Whether its optimizer step is done, and counted.
    """
    if not trainer.lightning_module.automatic_optimization:
        return trainer.fit_loop.total_batch_idx
    return trainer.global_step - ended


class Thinning:
    """At most one reading for each time that the trainer logs.

    Args:
        first: Take the very first as well, of readings that are few.
    """

    def __init__(self, first: bool = False):
        self._last = None if first else -1

    def takes(self, trainer: Trainer, step: int) -> bool:
        """Whether to log what was read at this step."""
        every = log_every(trainer)
        if every <= 0 or (self._last is not None and (step + 1) // every == (self._last + 1) // every):
            return False
        self._last = step
        return True


def log(trainer: Trainer, own: Own, values: Callable[[str], dict[str, float]], step: int) -> None:
    """Write values of an optimizer to every logger, under names made with its own separator."""
    for logger in trainer.loggers:
        separator = logger.group_separator
        with _going_on(logger):
            logger.log_metrics(own.named(values(separator), separator), step=step)


def tell(trainer: Trainer, event: Event, step: int) -> None:
    """Write an event to every logger that takes text."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        with _going_on(logger):
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if callable(add_text):
                add_text(f"stepguard{logger.group_separator}events", event.message, step)


@contextmanager
def _going_on(logger: Logger) -> Iterator[None]:
    """Let no logger that cannot write, as on a full disk, end the training; said once of each."""
    try:
        yield
    except Exception as error:
        if logger not in _failed:
            _failed.add(logger)
            rank_zero_warn(f"stepguard: {type(logger).__name__} could not write ({error}); training goes on without it")
