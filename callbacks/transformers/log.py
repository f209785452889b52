from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback

from stepguard.records import Event

_SCREENS = (ProgressCallback, PrinterCallback)
_TAKE_TEXT = (TensorBoardCallback, WandbCallback)
"""Others drop it, with a warning each time."""


class TrainerLog:
    """The trainer's own log, which callbacks are shown but not asked to write to."""

    def __init__(self) -> None:
        self._waiting: dict[str, float] = {}
        self._callbacks: list[TrainerCallback] = []

    def open(self, callback: TrainerCallback, trainer: Trainer | None) -> None:
        """Come before the reporters, which a trainer puts before the callbacks that it is given.

        What :meth:`fill` adds would not reach them otherwise. No callback is called twice or passed over for it: those
        in front of this one move up by one place, and they had this event already.
        """
        self._waiting = {}
        self._callbacks = trainer.callback_handler.callbacks if trainer else []
        if callback in self._callbacks:
            self._callbacks.remove(callback)
            self._callbacks.insert(0, callback)

    def keep(self, values: dict[str, float]) -> None:
        """For the next time that the trainer logs, unless something newer comes."""
        self._waiting = values

    def fill(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Add to what the trainer is about to log of its training, but not of an evaluation or at the end."""
        if "loss" not in logs:
            return
        logs.update(self._waiting)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(self._waiting)  # was copied from logs before any callback saw them
        self._waiting = {}

    def write(self, values: dict[str, Any], args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        """Log at this step, whatever the cadence, without the loss: its average would begin anew.

        Not through ``Trainer.log``: subclasses add averages of their own there, which would begin anew as well.
        """
        state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})
        is_text = any(isinstance(value, str) for value in values.values())
        for callback in self._callbacks:
            if isinstance(callback, _TAKE_TEXT) if is_text else not isinstance(callback, _SCREENS):
                callback.on_log(args, state, control, logs=dict(values), **others)

    def tell(self, event: Event, args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        """Log an event as text."""
        self.write({"stepguard/events": event.message}, args, state, control, **others)
