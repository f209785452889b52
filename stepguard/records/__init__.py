"""Readings and events, the one table of metric names, and the places they are written to."""

from stepguard.records.collapse import CollapseReading
from stepguard.records.lines import JsonLines
from stepguard.records.metrics import COLLAPSE_METRICS, METRICS, Metric, breach_values, metric_values
from stepguard.records.reading import Event, Reading, breach_event
from stepguard.records.recorder import Memory, Recorder, TensorBoard
from stepguard.records.rows import Rows
from stepguard.records.runs import Run, read_runs

__all__ = [
    "COLLAPSE_METRICS",
    "METRICS",
    "CollapseReading",
    "Event",
    "JsonLines",
    "Memory",
    "Metric",
    "Reading",
    "Recorder",
    "Rows",
    "Run",
    "TensorBoard",
    "breach_event",
    "breach_values",
    "metric_values",
    "read_runs",
]
