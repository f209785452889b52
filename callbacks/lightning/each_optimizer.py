from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from stepguard.callbacks.lightning.loggers import Thinning, axis, tell
from stepguard.callbacks.lightning.names import Callback, misconfiguration
from stepguard.callbacks.lightning.optimizers import Own, checked_index, chosen
from stepguard.callbacks.lightning.records import lines_beside
from stepguard.callbacks.lightning.screen import say
from stepguard.guard import CollapseMonitor, Guard
from stepguard.probe import no_modes
from stepguard.records import SAID_ELSEWHERE, CollapseReading, Event, Later, Memory, Reading, Recorder, Telling

Watcher = TypeVar("Watcher", bound=Guard | CollapseMonitor)


class Notes(Memory):
    """What one watcher has said since the last batch ended.

    Args:
        own: The optimizer that it watches.
        thinning: Which of its readings are logged.
        newest: Called with each reading as it comes.

    Attributes:
        asked: The number of a step that a GradScaler was asked for, and may have skipped.
        asked_at: Where that lies on the axis of the loggers.
    """

    def __init__(self, own: Own, thinning: Thinning, newest: Callable[[Any], None]):
        super().__init__()
        self.own, self.thinning, self._newest = own, thinning, newest
        self.telling = Telling(own.label)
        self.asked: int | None = None
        self.asked_at: int | None = None
        self.lines: Later | None = None

    def reading(self, reading: Reading | CollapseReading) -> None:
        super().reading(reading)
        self._newest(reading)


class EachOptimizer(Callback, Generic[Watcher]):
    """A callback that has a watcher, a guard or a monitor, for each of a module's optimizers.

    Args:
        optimizer: The only one to look after; None is each.
        show: Whether to print events.
    """

    def __init__(self, optimizer: int | None, show: bool):
        self._optimizer, self._show = checked_index(optimizer), show
        self._watchers: list[Watcher] = []
        self._notes: list[Notes] = []
        self._state: dict[str, Any] = {}
        self._last: Any = None

    @property
    def state_key(self) -> str:
        if self._optimizer is None:
            return super().state_key
        return self._generate_state_key(optimizer=self._optimizer)

    @abstractmethod
    def _watch(self, trainer: Trainer, pl_module: LightningModule, notes: Notes) -> Watcher:
        """Begin to watch the optimizer of these notes, and write them."""

    def _places(self, trainer: Trainer, notes: Notes, said: dict[str, Any]) -> list[Recorder]:
        """Where a watcher writes: into these notes, and lines of JSON that begin with what is said of it."""

        def at() -> int:
            return axis(trainer, ended=False) if notes.asked_at is None else notes.asked_at

        name = str(notes.own.number) if notes.own.several else ""
        notes.lines = Later(lambda: lines_beside(trainer, said, name, at))
        return [notes, notes.lines]

    @abstractmethod
    def _log(self, trainer: Trainer, notes: Notes, readings: list[Any], events: list[Event], step: int) -> None:
        """Log the readings of a batch."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owns = chosen(type(self).__name__, self._optimizer, trainer, pl_module)
        self._watchers, self._notes = [], [Notes(own, self._thinning(), self._keep) for own in owns]
        # A watcher that is alone keeps its state as it is, and alone it was the first.
        states = self._state.get("optimizers", {owns[0].number: self._state} if self._state else {})
        for notes in self._notes:
            try:
                watcher = self._watch(trainer, pl_module, notes)
            except ValueError as error:
                raise misconfiguration(trainer, f"{type(self).__name__}: {notes.own.label}{error}") from error
            self._watchers.append(watcher)
            if notes.lines:
                notes.lines.open()
            if state := states.get(notes.own.number):
                watcher.load_state_dict(state)
        self._last = max((w.last for w in self._watchers if w.last), key=lambda reading: reading.step, default=None)

    def _thinning(self) -> Thinning:
        return Thinning()

    def _keep(self, reading: Any) -> None:
        self._last = reading

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A GradScaler that finds inf does not call the optimizer, so that this is the last that is heard of the step.
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            for notes, watcher in zip(self._notes, self._watchers, strict=True):
                if notes.own.optimizer is optimizer:
                    _count_skipped(notes, watcher)
                    notes.asked, notes.asked_at = watcher.step, axis(trainer, ended=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = axis(trainer)
        with no_modes():  # our numbers are none of the training step's, which a guard may be watching already
            for notes, watcher in zip(self._notes, self._watchers, strict=True):
                _count_skipped(notes, watcher)
                readings, collapses, events = notes.drain()
                self._log(trainer, notes, [*readings, *collapses], events, step)
                for event in events:
                    tell(trainer, event, step)
                    if self._show and event.kind not in SAID_ELSEWHERE:
                        say(trainer, notes.telling.lines(event), pl_module.print)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._say_rest(trainer, print)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._say_rest(trainer, pl_module.print)
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        if not self._watchers:
            return self._state
        states = {n.own.number: w.state_dict() for n, w in zip(self._notes, self._watchers, strict=False)}
        return {"optimizers": states} if len(self._notes) > 1 else next(iter(states.values()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict

    def _say_rest(self, trainer: Trainer, put_out: Callable[[str], None]) -> None:
        for notes in self._notes:
            say(trainer, notes.telling.rest(), put_out)

    def _detach(self) -> None:
        self._state = self.state_dict()
        for watcher in self._watchers:
            watcher.detach()


def _count_skipped(notes: Notes, watcher: Guard | CollapseMonitor) -> None:
    if notes.asked == watcher.step:
        watcher.skipped()
    notes.asked = notes.asked_at = None
