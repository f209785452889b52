from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from stepguard.callbacks.transformers.calling import after_training, calling_trainer
from stepguard.callbacks.transformers.log import TrainerLog
from stepguard.callbacks.transformers.records import lines_beside
from stepguard.guard import CollapseMonitor, Guard, check_owned
from stepguard.guard.attach import unwrapped
from stepguard.records import JsonLines, Later, Memory, Recorder


class Watching(TrainerCallback, ExportableState):
    """A callback that has a guard or a monitor on the model from the beginning of ``train()`` to its end.

    Its state is in the ``trainer_state.json`` of each checkpoint, and a run that goes on from one takes it up.

    Args:
        settings: What the callback was made with, as far as JSON can hold it.
        beyond: Names of what was given beside that.

    Attributes:
        lost: Names of arguments that the trainer could not give when it made this callback again from a checkpoint.
    """

    def __init__(self, settings: dict[str, Any], beyond: list[str] | None = None):
        self.lost: list[str] = []
        self._settings_given, self._beyond = settings, beyond or []
        self._memory = Memory()
        self._log = TrainerLog()
        self._watcher: Guard | CollapseMonitor | None = None
        self._beside: Callable[[dict[str, Any]], JsonLines | None] = lambda said: None
        self._lines: Later | None = None

    def detach(self) -> None:
        """Let go of the model; done at the end of ``train()``.

        Only if it raises, and the callback came by ``add_callback``, that has to be called.
        """
        if self._watcher:
            self._watcher.detach()
        self._beside, self._lines = lambda said: None, None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if trainer := calling_trainer():
            after_training(trainer, self.detach)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()  # of a train() that came to no end, or begins anew with a smaller batch
        self._memory.drain()
        name = type(self).__name__
        if self.lost:
            raise ValueError(
                f"{name} was made again from a checkpoint, which cannot hold its {', '.join(self.lost)}. Leave "
                "restore_callback_states_from_checkpoint at False: its state is restored all the same"
            )
        # A checkpoint from before it was there has none, and a trainer that saves needs one.
        entries = cast(dict[str, Any], state.stateful_callbacks)
        saved = entries.setdefault(name, self._entry({}))
        if isinstance(saved, list):
            raise ValueError(f"the Trainer has {len(saved)} callbacks {name}; a model has one optimizer, so pass one")
        trainer = calling_trainer()
        self._log.open(self, trainer)
        model, optimizer = unwrapped(kwargs["model"], kwargs["optimizer"])
        check_owned(model, optimizer)
        scheduler = kwargs.get("lr_scheduler")
        self._beside = partial(lines_beside, trainer, args, state)
        self._watcher = self._watch(model, optimizer, scheduler if isinstance(scheduler, LRScheduler) else None)
        found = saved["attributes"].get("saved")
        if state.global_step and found:
            self._watcher.load_state_dict(found)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._lines:
            self._lines.open()  # the reporters, which may come after this one, have their folders by now

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None:
            self._log.fill(state, logs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()

    def state(self) -> dict[str, Any]:
        return self._entry(self._watcher.state_dict() if self._watcher else {})

    def _entry(self, saved: dict[str, Any]) -> dict[str, Any]:
        """As the trainer wants it: arguments to make the callback again, and attributes to set then."""
        return {"args": self._settings_given, "attributes": {"saved": saved, "lost": self._beyond}}

    def _places(self, said: dict[str, Any]) -> list[Recorder]:
        """Where a watcher writes: for the trainer's log, and lines of JSON that begin with what is said of it."""
        self._lines = Later(partial(self._beside, said))
        return [self._memory, self._lines]

    def _watch(self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> Guard | CollapseMonitor:
        raise NotImplementedError
