"""A demo run as a user runs it, and its logs and table read back."""

import os
import re
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def stepguard(*arguments, **environ):
    """The command in a process of its own, into pipes of unknown width unless ``COLUMNS`` is given."""
    command = [sys.executable, "-m", "stepguard.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | environ)


def environment():
    return {key: value for key, value in os.environ.items() if key != "COLUMNS"}


def scalars(folder):
    log = read(folder)
    return {tag: {e.step: e.value for e in log.Scalars(tag)} for tag in log.Tags()["scalars"]}


def events(folder):
    texts = read(folder).Tensors("stepguard/events/text_summary")
    return {e.step: e.tensor_proto.string_val[0].decode() for e in texts}


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def table_rows(text, runs, columns):
    """The cells of each run's row in the closing table."""
    cells = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {row[0]: row[1:] for row in cells if row[0] in runs and len(row) == columns + 1}
