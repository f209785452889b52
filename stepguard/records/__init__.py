"""Readings and events, the one table of metric names, and the places they are written to."""

from stepguard.records.collapse import CollapseReading
from stepguard.records.culprit import Culprit
from stepguard.records.later import Later
from stepguard.records.lines import JsonLines
from stepguard.records.metrics import COLLAPSE_METRICS, METRICS, Metric, breach_values, metric_values
from stepguard.records.reading import Event, Reading, breach_event
from stepguard.records.recorder import Memory, Recorder, TensorBoard
from stepguard.records.rows import Rows
from stepguard.records.runs import Run, find_runs, read_runs
from stepguard.records.telling import SAID_ELSEWHERE, Telling

__all__ = [
    "SAID_ELSEWHERE",
    "COLLAPSE_METRICS",
    "METRICS",
    "CollapseReading",
    "Culprit",
    "Event",
    "JsonLines",
    "Later",
    "Memory",
    "Metric",
    "Reading",
    "Recorder",
    "Rows",
    "Run",
    "Telling",
    "TensorBoard",
    "breach_event",
    "breach_values",
    "find_runs",
    "metric_values",
    "read_runs",
]
