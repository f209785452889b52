"""A run as a picture: everything is there at any width, and nothing runs out of its frame."""

import io
import math

import pytest
from rich.console import Console
from views.frames import reading, room

from stepguard.records import Event, breach_event
from stepguard.views.course import Course
from stepguard.views.run_panel import run_panel
from stepguard.views.words import facts, softmax, state

MESSAGE = "step 400: r = 0.06 will pass the target of 1 at about step 900, if it goes on as it does"


def spiked(steps=1200):
    """Ten steps a second from second 1000 on; two spikes, a forecast, and a softmax on its way to collapse."""
    course = Course()
    for step in range(steps):
        at = 1000 + step / 10
        r = 268.0 if 50 <= step < 81 or step >= steps - 10 else 0.07
        seen = reading(step, r, scale=min(1.0, 0.07 / r))._replace(cost_share=0.043)
        course.take(seen, at)
        if seen.breach:
            course.take(breach_event(seen), at)
        if step == 400:
            course.take(Event(step, "forecast", MESSAGE), at)
        if step % 100 == 0:
            course.take(room(step, 8.3 - step / 200)._replace(trend=-0.005, forecast=2000.0, cost_share=0.01), at)
    return course


def drawn(course, width, now=1125.0):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(run_panel("runs/loop", course, now))
    return console.file.getvalue().splitlines()


SHOWN = {
    "name and state": "runs/loop  running",
    "step": "step 1,199",
    "r asked, made and its limit": "r 268 -> 0.07 of 1",
    "learning rate asked and applied": "lr 0.1 -> 2.61e-05",
    "the rate that would be safe": "safe up to 0.000373",
    "how many were beyond": "41 of 1,200 readings beyond",
    "pace": "10 steps/s",
    "cost, of guard and monitor together": "cost 5.3%",
    "headroom": "softmax 2.8 nats of headroom",
    "forecast of collapse": "at this rate collapse at step 2,000, in 80 s",
    "the first spike as one line": "clamp 31 50 step 80: r 268 -> 0.07",
    "the second spike": "clamp 10 1,190 step 1199: r 268 -> 0.07",
    "the forecast": "forecast 1 400 step 400: r = 0.06 will pass",
}


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("shown", SHOWN)
def test_everything_is_there(shown, width):
    words = " ".join(" ".join(line.strip("│ ") for line in drawn(spiked(), width)).split())
    assert " ".join(SHOWN[shown].split()) in words


@pytest.mark.parametrize("width", [80, 200])
def test_nothing_runs_out_of_the_frame(width):
    lines = drawn(spiked(), width)
    assert {len(line) for line in lines} == {width} and len(lines) < 24
    assert all(line[0] + line[-1] in ("╭╮", "││", "╰╯") for line in lines)


@pytest.mark.parametrize("r", [0.0, 1e-9, 1e30, math.inf, math.nan])
def test_any_r_is_drawn(r):
    course = Course()
    course.take(reading(0, r, scale=0.0), 0.0)
    assert "step 0" in "\n".join(drawn(course, 80))


@pytest.mark.parametrize("r", [0.0, 0.5, 7.0, math.inf, math.nan])
def test_what_scalars_do_not_tell_is_not_said(r):
    course = Course()
    course.take(reading(0, r)._replace(target=math.nan, scale=math.nan, lr=math.nan, lr_applied=math.nan), 0.0)
    text = "\n".join(drawn(course, 80))
    assert f"r {r:.3g}" in text and f"{int(not math.isfinite(r))} of 1 readings beyond" in text
    assert "lr" not in text and text.count("nan") == math.isnan(r) and "->" not in text


def test_a_run_without_a_step():
    assert "no step yet" in "\n".join(drawn(Course(), 80))


STATES = {
    "running": (1120.0, False, "running"),
    "a pause that is usual": (1145.0, False, "running"),
    "silent": (1300.0, False, "silent for 3 min"),
    "just ended": (1121.0, True, "ended"),
    "ended long ago": (1120.0 + 7200, True, "ended 2.0 h ago"),
}


@pytest.mark.parametrize("name", STATES)
def test_whether_it_runs(name):
    now, ended, said = STATES[name]
    course = spiked()
    course.ended = ended
    assert state(course, now)[0] == said


def test_where_records_are_far_apart_silence_is_longer():
    course = Course()
    for step in range(0, 100, 20):
        course.take(reading(step, 0.1), at=60.0 * step)  # every 20 minutes
    assert state(course, 4800 + 3000)[0] == "running" and state(course, 4800 + 13000)[0] == "silent for 3.6 h"


def test_bad_news_is_known_as_such():
    course = Course()
    course.take(reading(0, 0.1), 0.0)
    course.take(room(0, 8.0), 0.0)
    assert not any(bad for _, bad in [*facts(course), *softmax(course)])
    course.take(reading(1, 3.0, scale=1 / 3), 1.0)
    course.take(room(1, -0.5, collapse=0.2), 1.0)
    bad = [text for text, bad in [*facts(course), *softmax(course)] if bad]
    assert bad == [
        "r 3 -> 1 of 1", "lr 0.1 -> 0.0333", "1 of 2 readings beyond", "softmax collapsed for 20.0% of the samples"
    ]  # fmt: skip


FORECASTS = {
    "none": (None, "softmax 3.0 nats of headroom", False),
    "far": (5000.0, "softmax 3.0 nats of headroom; at this rate collapse at step 5,000, in 82 min", False),
    "near": (200.0, "softmax 3.0 nats of headroom; at this rate collapse at step 200, in 2 min", True),
    "past": (50.0, "softmax 3.0 nats of headroom; at this rate collapse is due now", True),
}


@pytest.mark.parametrize("name", FORECASTS)
def test_the_forecast_is_told_from_the_latest_step_on(name):
    forecast, said, near = FORECASTS[name]
    course = Course()
    course.take(room(40, 3.0)._replace(forecast=forecast), 40.0)
    for step in range(41, 81):
        course.take(reading(step, 0.1), float(step))
    assert softmax(course) == [(said, near)]


def test_a_course_is_bounded_however_long_the_run():
    course = Course()
    for step in range(20_000):
        course.take(reading(step, 0.1), float(step))
        course.take(Event(step, "skipped" if step % 200 < 100 else "clamp", ""), float(step))
    assert len(course._streaks) <= 100 and len(course._marks) <= 256 and len(course.r._largest) <= 1024
    assert [tally.times for tally in course.streaks(2)] == [100, 100]
