"""What to do, and why: each sentence with numbers of the run, and none that does not apply."""

import re
import string

import pytest
from made_up_runs import CULPRIT, START, calm, jumped, look, reading, run_of

from stepguard.diagnosis import causes, post_mortem
from stepguard.diagnosis.about import about
from stepguard.diagnosis.known import of_the_finding, of_the_guard, of_the_softmax
from stepguard.diagnosis.remedies import ANY, REMEDIES, Remedy
from stepguard.diagnosis.track import track_of
from stepguard.records import Event

CAUSES = {value for name, value in vars(causes).items() if name.isupper() and isinstance(value, str)}


def everything():
    """A run in which all is wrong at once, so that every number is known."""
    usual = {"gradient_norm": 1.0, "weight_norm": 2.0, "samples": 64, "loss": 0.5, "loss_max": 1.0}
    usual |= {"inputs": 64, "input_norm": 3.0, "input_norm_max": 4.0}
    bad = usual | {"gradient_norm": 3.0, "loss": 9.0, "loss_max": 90.0, "input_norm_max": 400.0}
    readings = [reading(s, **usual) for s in range(60)]
    readings[40] = reading(40, r=20.0, lr=0.1, scale=0.05, **bad)
    groups = [{"lr": 0.1, "momentum": 0.99, "weight_decay": -0.01}]
    start = {**START, "groups": groups, "settings": {"action": "clamp", "target": 1.0}}
    data = {"group": 0, "name": "momentum", "before": 0.9, "now": 0.99}
    events = [Event(38, "changed", "", data=data), CULPRIT.event(), Event(50, "unmeasured", "")]
    run = run_of(readings, events, [look(s, 9.0 - s / 10, logit_norm=1.0 + s) for s in range(0, 60, 10)], start)
    run.starts.append({**start, "pid": 2, "time": 1038.5})
    return run


def test_every_cause_has_something_to_do():
    assert set(REMEDIES) - {"healthy"} == CAUSES


def test_every_number_that_advice_names_can_be_known():
    run = everything()
    found = post_mortem(run)
    near = found.softmax._replace(alignment=0.9, forecast=70.0, trend=-0.1, last=2.0)
    done = found.done._replace(longest_held=50, withheld=2)
    known = of_the_guard(about(run), done) | of_the_softmax(near)
    known |= of_the_finding(found.diagnosis.main, about(run), track_of(run)) | {"room": "3"}
    remedies = [remedy for several in (*REMEDIES.values(), ANY) for remedy in several]
    names = {name for r in remedies for _, name, *_ in string.Formatter().parse(r.do + r.because) if name}
    assert names - known.keys() == set()


def advice_of(run):
    return post_mortem(run).advice


def test_it_is_told_with_the_numbers_of_the_run():
    first = advice_of(jumped())[0]
    assert "learning rate at step 40" in first.do
    assert first.because == "it went from 0.1 to 10; up to 0.5 would have kept to the target"


def test_to_clamp_is_advised_where_the_run_was_only_observed():
    clamp = [item for item in advice_of(jumped("observe")) if 'action="clamp"' in item.do]
    assert clamp[0].because.startswith("it would have made step 40 at most 0.05 times as long, for r = 1;")
    assert not any('action="clamp"' in item.do for item in advice_of(jumped("clamp")))


def test_a_calm_run_may_be_told_of_its_room():
    (item,) = advice_of(calm())
    assert "larger learning rate" in item.do and " 4 times as much" in item.because
    assert advice_of(calm(r=0.7)) == ()


def test_never_more_than_four_and_each_once():
    for run in (everything(), jumped()):
        found = advice_of(run)
        assert 0 < len(found) <= 4 and len({item.do for item in found}) == len(found)


@pytest.mark.parametrize("cause", REMEDIES)
def test_a_reason_has_numbers(cause):
    for remedy in REMEDIES[cause]:
        assert re.search(r"\{\w+\}", remedy.because), remedy


def test_what_is_not_known_is_not_said(monkeypatch):
    monkeypatch.setitem(REMEDIES, causes.LR_JUMP, (Remedy("do", "for {nothing}"), Remedy("other", "at {step}")))
    assert [(item.do, item.because) for item in advice_of(jumped("clamp"))] == [("other", "at 40")]
