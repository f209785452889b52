import io
import math

import pytest
from rich.console import Console
from views.frames import Frame, clamped, reading
from views.screens import last_picture, terminal

from stepguard.views.console import LiveView, watch
from stepguard.views.look import bar
from stepguard.views.plain import PlainView
from stepguard.views.spike.look import spike_look

LOOK = spike_look(target=1.0)


def test_a_terminal_gets_the_live_view_and_a_pipe_gets_lines():
    assert isinstance(watch(terminal(), "", ["a"], LOOK, 1), LiveView)
    assert isinstance(watch(Console(file=io.StringIO()), "", ["a"], LOOK, 1), PlainView)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(watch(dumb, "", ["a"], LOOK, 1), PlainView)


@pytest.mark.parametrize("width, height", [(80, 24), (160, 45)])
def test_live_view_fits_and_shows_everything(width, height):
    console = terminal(width, height)
    runs = ["no spike", "plain", "clipped", "guarded"]
    with watch(console, "a title", runs, LOOK, 40) as view:
        view.stage("seed 3")
        for step in range(10):
            for run in runs:
                view.frame(run, clamped(step, 5678.0, loss=1234.5, accuracy=98.7))
    lines = last_picture(view, console).splitlines()
    text = "\n".join(lines)
    assert len(lines) < height and max(map(len, lines)) <= width
    for part in ("a title", "seed 3", "1.23e+03", "98.7", "5.68e+03", "0.1", "1.76e-05", "step 9: r 5.68e+03 -> 1"):
        assert part in text
    for run in runs:
        assert sum(line.strip("│ ").startswith(run) for line in lines) == 2
    assert "100%" in text


@pytest.mark.parametrize("r", [0.0, 1e-9, 1.0, 1e30, math.inf, math.nan, None])
def test_live_view_survives_any_r(r):
    console = terminal()
    with watch(console, "", ["plain", "withheld"], LOOK, 2) as view:
        view.frame("plain", Frame(0, loss=math.nan, reading=None if r is None else reading(0, r)))
        view.frame("withheld", Frame(0, loss=math.inf, reading=None if r is None else reading(0, r, scale=0.0)))
    assert "withheld" in last_picture(view, console)


@pytest.mark.parametrize("share, drawn", [(0.25, 0.25), (-1.0, 0.0), (7.0, 1.0), (math.nan, 1.0)])
def test_a_bar_is_full_where_there_is_no_telling(share, drawn):
    assert bar(share, "red").completed == drawn


def test_live_view_comes_down_when_training_is_interrupted():
    console = terminal()
    with pytest.raises(KeyboardInterrupt), watch(console, "", ["a"], LOOK, 2) as view:
        raise KeyboardInterrupt
    assert not view._live.is_started


def plain_lines(steps, every=25):
    out = io.StringIO()
    with PlainView(Console(file=out, width=80), "a title", ["plain", "guarded"], LOOK, every) as view:
        view.stage("seed 0")
        for step in range(steps):
            view.frame("plain", Frame(step, reading=reading(step, 0.5)))
            view.frame("guarded", clamped(step, 400.0) if step >= 3 else Frame(step, reading=reading(step, 0.5)))
    return out.getvalue().splitlines()


def test_plain_lines_come_every_so_often_and_at_the_end():
    lines = plain_lines(steps=60)
    assert lines[:2] == ["a title", "seed 0"]
    assert [int(line.split()[1]) for line in lines if line.startswith("step")] == [24, 24, 49, 49, 59, 59]
    assert max(map(len, lines)) <= 80


def test_a_held_spike_is_told_once_and_then_drawn_together():
    events = [line.split("!")[1].split() for line in plain_lines(steps=60) if "!" in line]
    assert [" ".join(words) for words in events] == [
        "guarded clamp, step 3: r 400 -> 1",
        "guarded and 21 more: clamp, latest step 24: r 400 -> 1",
        "guarded and 25 more: clamp, latest step 49: r 400 -> 1",
        "guarded and 10 more: clamp, latest step 59: r 400 -> 1",
    ]
