"""Events as lines: nothing that is news is missed, and nothing floods."""

import pytest

from stepguard.records import Event, Telling


def event(step, kind="clamp"):
    return Event(step, kind, f"step {step}: {kind}")


def told(steps, kind="clamp", label=""):
    """The step of each line, and the lines that are left at the end."""
    telling, lines = Telling(label), {}
    for step in steps:
        for line in telling.lines(event(step, kind)):
            lines.setdefault(step, []).append(line)
    return lines, telling.rest()


SPIKES = {
    "one event": ([7], [7]),
    "a spike that is held": (range(100), [0, 10, 30, 70]),
    "far apart": ([0, 1000, 2000, 3500], [0, 1000, 2000, 3500]),
    "two spikes in a row": ([*range(5), *range(400, 405)], [0, 400]),
    "a run that went on from an earlier step": ([50, 51, 20], [50, 20]),
}


@pytest.mark.parametrize("spike", SPIKES)
def test_the_first_in_full_and_those_that_follow_ever_fewer(spike):
    steps, expected = SPIKES[spike]
    lines, _ = told(steps)
    assert list(lines) == expected
    assert lines[expected[0]] == [f"step {expected[0]}: clamp"]


def test_a_million_events_are_some_twenty_lines_that_count_all_of_them():
    lines, rest = told(range(1_000_000))
    counts = [int(line.split()[1]) for of_step in lines.values() for line in of_step if line.startswith("and")]
    assert len(lines) + len(rest) < 25
    assert 1 + sum(counts) + sum(int(line.split()[1]) for line in rest) == 1_000_000


def test_what_was_not_told_is_told_before_the_next_spike():
    lines, rest = told([0, 3, 2000])
    assert lines[2000] == ["and 1 more: clamp, latest step 3: clamp", "step 2000: clamp"] and rest == []


def test_kinds_do_not_hide_each_other_and_counts_have_the_label():
    telling = Telling("optimizer 1, ")
    assert telling.lines(event(0)) and telling.lines(event(1, "forecast")) and not telling.lines(event(2))
    assert telling.rest() == ["optimizer 1, and 1 more: clamp, latest step 2: clamp"]
    assert telling.rest() == []
