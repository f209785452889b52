"""The post-mortem in a terminal: by its rendered text."""

import io
import math

import pytest
from made_up_runs import calm, jumped, look, reading, run_of
from rich.console import Console

from stepguard.diagnosis import post_mortem
from stepguard.records import Event
from stepguard.views.report.bars import bars
from stepguard.views.report.terminal import show
from stepguard.views.report.told import Told
from stepguard.views.report.wording import when

LONG = "a" * 90


def told(run):
    return Told(run, post_mortem(run))


def rendered(*runs, width=80, **options):
    file = io.StringIO()
    show(Console(file=file, width=width, legacy_windows=False, **options), [told(run) for run in runs])
    return file.getvalue()


def flat(text):
    """All words in one line, whatever the width."""
    return " ".join(text.replace("│", " ").split())


RUNS = {
    "a jump": jumped(),
    "a long name": jumped(name=f"{LONG}/{LONG}"),
    "calm": calm(),
    "nothing": run_of(),
    "not finite": run_of([reading(s, math.nan if s == 20 else 0.3, scale=1.0) for s in range(30)]),
    "a monitor alone": run_of(looks=[look(0, 9.0), look(9, 8.0)]),
}


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("case", RUNS)
def test_no_line_is_wider_than_the_terminal(case, width):
    assert max(map(len, rendered(RUNS[case], width=width).splitlines())) <= width


@pytest.mark.parametrize("width", [80, 200])
def test_a_jump_is_told_with_its_numbers(width):
    text = flat(rendered(jumped(), width=width))
    for said in (
        "step 40: r = 20 of 1: learning rate jump.",
        "learning rate 0.1 10 100 ",
        "in all 62.8 100%",
        "let through all the same 1 1.7%",
        "1 (this run) 1 1.7% 0.05",
        "Left out: readings from step 40 on",
        "It went from 0.1 to 10; up to 0.5 would have kept to the target.",
        "40 learning rate jump serious 40 20 1 1",
    ):
        assert said in text, said


def test_where_the_trainers_own_log_has_that_step():
    run = jumped()
    assert f"step 40 {flat(when(1040.0))}" in flat(rendered(run))
    assert "own log" not in rendered(run)
    run.logged_steps.update({40: 41})
    assert "; step 41 in the trainer's own log" in flat(rendered(run))


def test_parts_of_the_spread_add_up_with_what_is_left_over():
    text = flat(rendered(jumped()))
    for line in ("head.weight 70 111.5%", "body.weight -10 -15.9%", "all others 1.8 2.9%", "left over 1 1.6%"):
        assert line in text


HEADINGS = {
    "calm": [
        "What the guard did",
        "What other targets would have done",
        "How far the learning rate could go",
        "What to do",
    ],
    "nothing": [],
    "a monitor alone": ["How near the softmax came to collapse"],
    "a jump": ["What changed at step 40", "Where it comes from", "All that was found"],
}
HEADINGS["a jump"] += HEADINGS["calm"] + HEADINGS["a monitor alone"]
EVERY = {heading for headings in HEADINGS.values() for heading in headings} | {"What it cost"}


@pytest.mark.parametrize("case", HEADINGS)
def test_a_section_is_there_only_where_there_is_something_to_say(case):
    text = rendered(RUNS[case])
    assert {heading for heading in EVERY if f"\n{heading}" in text} == set(HEADINGS[case])


def test_without_a_terminal_there_are_no_colours_and_with_one_there_are():
    assert "\x1b" not in rendered(jumped())
    assert "\x1b[31m" in rendered(jumped(), force_terminal=True, color_system="standard")


def test_of_several_runs_a_table_comes_first():
    text = rendered(jumped(), calm())
    assert text.index("2 runs, 1 of them spoiled") < text.index("Run jumped") < text.index("Run calm")
    assert "jumped learning rate jump 40 20 1 1 60" in flat(text) and "calm healthy 0.25 1 0 60" in flat(text)


def test_what_comes_from_records_is_not_markup():
    run = run_of([reading(0)], name="[red]x[/] [link=http://a]b")
    run.notices.append("[bold]line 3[/]")
    assert "[red]x[/] [link=http://a]b" in rendered(run) and "[bold]line 3[/]" in rendered(run)
    file = io.StringIO()
    show(Console(file=file, width=80), [Told(run, post_mortem(run)._replace(verdict="[red]said[/]"))])
    assert "[red]said[/]" in file.getvalue()


def test_forecasts_are_told_with_what_came_of_them():
    event = Event(
        10, "forecast", "step 10: r = 0.5 will pass the target of 1 at about step 30, if it goes on as it does"
    )
    readings = [reading(s, 2.0 if s == 35 else 0.3) for s in range(60)]
    assert "at step 10, of step 30: came at step 35." in flat(rendered(run_of(readings, [event])))


BARS = {
    "from the left": ([4.0, 2.0, 0.0], ["████", "██", ""]),
    "eighths of a letter": ([4.0, 1.5], ["████", "█▌"]),
    "to both sides of a common zero": ([2.0, -2.0], ["  ██", "▒▒"]),
    "nothing at all": ([0.0, 0.0], ["", ""]),
    "a little below nothing is seen": ([100.0, -2.0], [" ███", "▒"]),
    "rounding is not": ([1.0, -1e-15], ["████", ""]),
    "all below": ([-1.0, -4.0], ["   ▒", "▒▒▒▒"]),
}


@pytest.mark.parametrize("case", BARS)
def test_bars_of_text(case):
    values, expected = BARS[case]
    assert bars(values, 4) == expected
