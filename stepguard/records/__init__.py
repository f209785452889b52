"""Readings and events, the one table of metric names, and the places they are written to."""

from stepguard.records.metrics import METRICS, Metric, metric_values
from stepguard.records.reading import Event, Reading
from stepguard.records.recorder import Memory, Recorder, TensorBoard

__all__ = ["METRICS", "Event", "Memory", "Metric", "Reading", "Recorder", "TensorBoard", "metric_values"]
