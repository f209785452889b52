from __future__ import annotations

from os import PathLike
from typing import Protocol

from stepguard.records.collapse import CollapseReading
from stepguard.records.metrics import metric_values
from stepguard.records.reading import Event, Reading


class Recorder(Protocol):
    """A place where a guard or a monitor writes what it saw."""

    def reading(self, reading: Reading | CollapseReading) -> None: ...  # noqa: D102
    def event(self, event: Event) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Memory:
    """Keeps everything in lists: ``readings`` of r, ``collapses`` and ``events``."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self.collapses: list[CollapseReading] = []
        self.events: list[Event] = []

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Append a reading."""
        if isinstance(reading, CollapseReading):
            self.collapses.append(reading)
        else:
            self.readings.append(reading)

    def event(self, event: Event) -> None:
        """Append an event."""
        self.events.append(event)

    def drain(self) -> tuple[list[Reading], list[CollapseReading], list[Event]]:
        """What has come since the last time, forgotten here."""
        drained = self.readings, self.collapses, self.events
        self.readings, self.collapses, self.events = [], [], []
        return drained

    def close(self) -> None:
        """Nothing to release."""


class TensorBoard:
    """Writes every reading as scalars, and every event as text, into a TensorBoard folder."""

    def __init__(self, log_dir: str | PathLike[str]):
        # Imported here: tensorboard takes a second that other users need not wait for.
        from torch.utils.tensorboard import FileWriter

        # Where TensorFlow is installed its files are buffered: of a killed process two minutes would be lost.
        self._writer = FileWriter(str(log_dir), flush_secs=10)

    def reading(self, reading: Reading | CollapseReading) -> None:
        """Write the scalars of one reading."""
        self.scalars(metric_values(reading), reading.step)

    def event(self, event: Event) -> None:
        """Write one event under the tag ``stepguard/events``."""
        from torch.utils.tensorboard.summary import text

        self._writer.add_summary(text("stepguard/events", event.message), event.step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write scalars of the caller's own beside them, for instance loss and accuracy."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # One record for all: SummaryWriter.add_scalar, called once a tag, costs several times more.
        self._writer.add_summary(Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()]), step)

    def close(self) -> None:
        """Write out what is still buffered and close the file."""
        self._writer.close()
