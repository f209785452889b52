"""The chart of r: whatever its values, what is beyond the limit is seen to be so."""

import io
import math
import random

import pytest
from rich.console import Console

from stepguard.views.chart import Chart
from stepguard.views.trail import Trail


def trail_of(values, every=1):
    trail = Trail()
    for i, value in enumerate(values):
        trail.add(i * every, value)
    return trail


def drawn(trail, limit=1.0, width=80, height=5, encoding="utf-8"):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=out, width=width, color_system=None).print(Chart(trail, limit, height))
    out.seek(0)
    return out.read().splitlines()


def columns(lines):
    """Of each column, how many lines it reaches above the limit."""
    limit = next(i for i, line in enumerate(lines) if line.split()[0] == "1")
    width = max(map(len, lines))
    return [sum(line.ljust(width)[x] != " " for line in lines[:limit]) for x in range(8, width)]


RUNS = {
    "calm": [0.1] * 60,
    "just below": [0.999] * 60,
    "at the limit": [1.0] * 60,
    "just beyond, once": [0.5] * 30 + [1.001] + [0.5] * 29,
    "a spike of many decades": [0.01] * 20 + [3e5] * 20 + [0.01] * 20,
    "not a number": [0.2] * 10 + [math.nan] + [0.2] * 49,
    "no end": [0.2] * 10 + [math.inf] + [0.2] * 49,
    "nothing moves": [0.0] * 60,
    "tiny": [1e-30] * 60,
    "only ever beyond": [7.0] * 60,
    "huge": [1e300] * 60,
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("height", [3, 5, 8])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_columns_rise_above_the_line_where_r_is_beyond_and_only_there(run, height, encoding):
    lines = drawn(trail_of(RUNS[run]), height=height, encoding=encoding)
    assert len(lines) == height + 1 and max(map(len, lines)) <= 80
    assert [rise > 0 for rise in columns(lines)] == [not r <= 1.0 for r in RUNS[run]]
    assert lines[-1].split() == ["0", "59"]


@pytest.mark.parametrize("width, steps", [(80, 1_000), (200, 1_000), (80, 300_000), (20, 7)])
def test_a_single_spike_is_seen_at_its_place_however_long_the_run(width, steps):
    place = steps // 3
    lines = drawn(trail_of(5.0 if step == place else 0.1 for step in range(steps)), width=width)
    rises = [x for x, rise in enumerate(columns(lines)) if rise]
    assert max(map(len, lines)) <= width
    assert len(rises) == 1 and rises[0] == pytest.approx(min(width - 8, steps) / 3, abs=1)


def test_between_readings_the_one_before_stands():
    lines = drawn(trail_of([0.1, 0.9, 5.0, 0.1], every=10))
    rises = columns(lines)
    assert [bool(rise) for rise in rises] == [False] * 20 + [True] * 10 + [False]


def test_a_chart_stays_as_it_was_made():
    trail = trail_of([0.1] * 9)
    chart = Chart(trail, 1.0)
    trail.add(9, 5.0)
    console = Console(file=io.StringIO(), width=80)
    console.print(chart)
    assert console.file.getvalue().splitlines()[-1].split() == ["0", "8"]


def test_a_trail_keeps_the_largest_of_everything_in_bounded_room():
    random.seed(0)
    values = [random.random() for _ in range(10_000)]
    trail = trail_of(values)
    assert max(trail.over(50)) == max(values) and len(trail._largest) <= 1024
    step = 10_000 / 50
    for part, value in enumerate(trail.over(50)):
        own = values[int((part - 0.1) * step) if part else 0 : int((part + 1.1) * step)]
        assert value in own and value >= max(values[int((part + 0.1) * step) : int((part + 0.9) * step)])
