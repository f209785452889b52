from __future__ import annotations

from collections.abc import Callable, Iterable

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn


class Shown(float):
    """A number that a progress bar shows with three digits, whatever its size: Rich's would make 0.0004 a 0.000.

    Example:
        >>> f"{Shown(0.000412345):.3f}, {Shown(5678.0):.3f}"
        '0.000412, 5.68e+03'
    """

    def __format__(self, spec: str) -> str:
        return format(float(self), ".3g")


def put(trainer: Trainer, values: dict[str, float]) -> None:
    """Have the progress bar show these, whichever it is; not by ``self.log``, which would also log them."""
    trainer.progress_bar_metrics.update({name: Shown(value) for name, value in values.items()})


def say(trainer: Trainer, lines: Iterable[str], put_out: Callable[[str], None]) -> None:
    """Print lines, on rank zero only.

    Args:
        trainer: Whose rank it is.
        lines: What to say.
        put_out: The module's ``print``, which goes above whichever bar is running: a live display of our own beside a
            rich one would end the training. Python's when none is running any more, for then tqdm's drops it.
    """
    if trainer.is_global_zero:
        for line in lines:
            try:
                put_out(f"stepguard: {line}")
            except Exception as error:  # a pipe that nobody reads any more is no reason to end a training
                rank_zero_warn(f"stepguard: an event could not be printed ({error}); loggers have it")
