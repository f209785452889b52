import math

from views.frames import clamped, reading

from stepguard.records import Event
from stepguard.records.tally import add_events, brief


def test_the_first_of_each_kind_and_run_is_returned_and_the_rest_counted():
    tallies = {}
    told = [add_events(tallies, run, clamped(step, 4.0).events) for step in range(5) for run in ("a", "b")]
    assert [event.step for events in told for event in events] == [0, 0]
    assert tallies["a", "clamp"].times == 5
    assert (tallies["a", "clamp"].first.step, tallies["a", "clamp"].latest.step) == (0, 4)
    new = add_events(tallies, "a", [Event(5, "skipped", "step 5: nothing moved")])
    assert [event.kind for event in new] == ["skipped"]


def test_brief_says_what_was_asked_and_what_was_made_of_it():
    assert brief(Event(7, "clamp", "", reading(7, 342.0, scale=1 / 342))) == "step 7: r 342 -> 1"
    assert brief(Event(7, "breach", "", reading(7, 342.0))) == "step 7: r 342"
    assert brief(Event(7, "withheld", "", reading(7, math.nan, scale=0.0))) == "step 7: r nan, not made"
