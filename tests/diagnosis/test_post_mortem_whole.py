"""The whole of a post-mortem, of runs made up and of runs that barely are."""

import math

import pytest
from made_up_runs import START, calm, jumped, look, reading, run_of

from stepguard.diagnosis import post_mortem
from stepguard.records import Event

NAN = math.nan


def nothing_known(step, r):
    """As of a run made of TensorBoard's scalars."""
    return reading(step, r, lr=NAN, scale=NAN, target=NAN)._replace(tau=NAN, rho=NAN, estimator="unknown")


VERDICTS = {
    "a jump of the learning rate": (
        jumped(),
        "step 40: r = 20 of 1: learning rate jump. The learning rate went from 0.1 to 10 at once, 100 times as large.",
    ),
    "a calm run": (calm(), "healthy: 60 steps, r at most 0.25 of 1."),
    "barely beyond does not read as at the target": (
        run_of([reading(s, 0.9 if s != 50 else 1.0004) for s in range(60)]),
        "healthy: 60 steps, r at most 1.0004 of 1. It was beyond its target briefly, at 1 step.",
    ),
    "with a monitor": (
        run_of([reading(0), reading(1)], looks=[look(0, 9.0), look(1, 8.5)]),
        "healthy: 2 steps, r at most 0.3 of 1, at least 8.5 nats of softmax headroom.",
    ),
    "only a monitor": (run_of(looks=[look(0, 9.0)]), "healthy: 1 step, at least 9 nats of softmax headroom."),
    "nothing measured": (
        run_of(events=[Event(0, "unmeasured", ""), Event(1, "unmeasured", "")]),
        "nothing was measured in 2 steps, so there is nothing to tell.",
    ),
    "nothing at all": (run_of(), "there are no steps in its records yet."),
    "no target known": (run_of([nothing_known(s, 0.5) for s in range(5)]), "healthy: 5 steps, r at most 0.5."),
    "not finite": (
        run_of([reading(s, 0.3 if s != 20 else NAN, scale=1.0) for s in range(30)]),
        "step 20: not finite. Not a finite number: the update itself.",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_what_happened_is_told_in_a_sentence(case):
    run, expected = VERDICTS[case]
    assert post_mortem(run).verdict == expected


CAUSES = {
    "a calm run": "healthy",
    "nothing measured": "unknown",
    "only a monitor": "healthy",
    "not finite": "not finite",
}


@pytest.mark.parametrize("case", CAUSES)
def test_a_run_of_which_nothing_is_known_is_not_called_healthy(case):
    found = post_mortem(VERDICTS[case][0])
    assert found.cause == CAUSES[case] and found.spoiled == (case == "not finite")


def test_which_run_it_is():
    found = post_mortem(jumped("clamp")).about
    assert (found.model, found.parameters, found.optimizer) == ("Net", 1234, "SGD")
    assert found.hyper == {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    assert (found.action, found.target, found.cadence) == ("clamp", 1.0, "auto")
    assert (found.first, found.last, found.steps, found.measured) == (0, 59, 60, 60)
    assert (found.began, found.seconds, found.state) == (1000.0, 59.0, "ended")


def test_a_run_that_was_killed_and_went_on():
    run = run_of([reading(s) for s in range(30)])
    run.starts.append({**START, "pid": 2, "time": 1010.5})
    run.ended = False
    found = post_mortem(run).about
    assert found.state == "unfinished" and found.resumed == (11,)


def test_a_run_without_first_lines():
    found = post_mortem(run_of([reading(0), reading(1, 2.0, scale=0.5)], start=None)).about
    assert (found.model, found.optimizer, found.state, found.action) == (None, None, "unknown", "clamp")


def test_what_was_measured_where_it_went_wrong_beside_what_was_usual():
    run = jumped()
    around = {measured.name: (measured.usual, measured.at) for measured in post_mortem(run).around}
    assert around["loss"] == (0.5, 0.5) and around["gradient norm"] == (2.0, 2.0) and around["samples"] == (64, 64)
    assert "norm of the median input" not in around


def test_a_close_look_has_each_factor_in_multiples_of_what_it_was():
    found = post_mortem(jumped()).zoom
    at = found.step.tolist().index(40)
    assert found.multiples["learning rate"][at] == pytest.approx(100)
    assert found.multiples["gradient"][at] == pytest.approx(1)
    product = math.prod(found.multiples[name][at] for name in found.multiples if name != "r")
    assert found.multiples["r"][at] == pytest.approx(product, rel=0.05)
    assert found.step[0] == 0 and found.step[-1] == 59
