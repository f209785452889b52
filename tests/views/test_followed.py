"""A run followed by its file is the run as its guard saw it, wherever reading began."""

import time

import pytest
from views.frames import reading

from stepguard.records import Event, JsonLines, Run, breach_event
from stepguard.views.followed import Followed


def write(folder, *records):
    """By a process of its own."""
    lines = JsonLines(folder)
    for record in records:
        lines.event(record) if isinstance(record, Event) else lines.reading(record)
    lines.close()


def followed(folder):
    return Followed(Run(folder / "stepguard.jsonl"), "run")


def steps(events):
    return [(event.step, event.kind) for event in events]


def test_what_is_added_is_taken_once(tmp_path):
    lines = JsonLines(tmp_path)
    run = followed(tmp_path)
    lines.reading(reading(0, 0.2))
    assert run.update() == [] and run.course.measured == 1
    for step in (1, 2):
        lines.reading(reading(step, 7.0))
        lines.event(breach_event(reading(step, 7.0)))
    assert steps(run.update()) == [(1, "breach"), (2, "breach")]
    assert run.update() == [] and (run.course.measured, run.course.beyond) == (3, 2)
    (tally,) = run.course.streaks(9)
    assert tally.times == 2 and tally.latest.reading.r == 7.0  # which has a line of its own in the file
    assert not run.course.ended
    lines.close()
    run.update()
    assert run.course.ended


def test_a_run_that_went_on_from_an_earlier_step(tmp_path):
    write(tmp_path, *(reading(step, 0.1) for step in range(50)), Event(49, "skipped", ""))
    run = followed(tmp_path)
    run.update()
    time.sleep(0.01)  # the time of a record has milliseconds
    write(tmp_path, *(reading(step, 9.0) for step in range(20, 22)), Event(21, "skipped", ""))
    assert steps(run.update()) == [(21, "skipped")]
    assert (run.course.step, run.course.measured, run.course.beyond) == (21, 22, 2)
    assert [tally.times for tally in run.course.streaks(9)] == [1]


def test_a_file_that_is_taken_away_leaves_what_was_read(tmp_path):
    write(tmp_path, reading(3, 0.1))
    run = followed(tmp_path)
    run.update()
    (tmp_path / "stepguard.jsonl").unlink()
    assert run.update() == [] and run.course.step == 3


ENDS = {
    "one that ended": (1, 1, True),
    "a guard and a monitor, both ended": (2, 2, True),
    "a guard that ended before its monitor": (2, 1, False),
    "one that was killed": (1, 0, False),
}


@pytest.mark.parametrize("name", ENDS)
def test_who_has_ended(name, tmp_path):
    began, ended, over = ENDS[name]
    writers = [JsonLines(tmp_path) for _ in range(began)]
    for writer in writers[:ended]:
        writer.close()
        writer.close()  # the second time is nothing
    run = followed(tmp_path)
    run.update()
    assert run.course.ended is over
    for writer in writers[ended:]:
        writer._file.close()


def test_one_that_was_killed_and_went_on_to_its_end(tmp_path):
    JsonLines(tmp_path, {"pid": 1})._file.close()
    JsonLines(tmp_path, {"pid": 2}).close()
    run = followed(tmp_path)
    run.update()
    assert run.course.ended
