"""Each rule on readings made by hand: where it holds, and where something like it does not."""

import math

import pytest
from by_hand import at_step, growing, run_of, times

from stepguard.diagnosis import diagnose
from stepguard.diagnosis.processes import Setting, changed_settings
from stepguard.records import CollapseReading, Event

AT = 60


def unwatched(now, values):
    if now == AT:
        return {name: None for name in ("weight_norm", "r_times_median", "loss", "loss_max", "samples")} | {
            "estimator": "prediction"
        }
    return None


HELD = {
    "the rate jumps": ("learning rate jump", AT, run_of(times(AT, 30, "lr", "tau"))),
    "the rate jumps for one step": ("learning rate jump", AT, run_of(times(AT, 30, "lr", "tau", until=AT + 1))),
    "the rate jumps in a step that nobody watched": (
        "learning rate jump",
        AT,
        run_of(times(AT, 30, "lr", "tau"), unwatched),
    ),
    "the rate grows by a tenth a step": ("learning rate ramp", 78, run_of(growing(AT, 1.1, "lr", "tau"))),
    "the rate goes up by stairs": (
        "learning rate ramp",
        60,
        run_of(lambda now, v: {n: v[n] * 1.6 ** max(0, (now - 20) // 10) for n in ("lr", "tau")}),
    ),
    "the rate comes back after a decay": (
        "warm restart",
        AT,
        run_of(times(20, 0.02, "lr", "tau", until=AT), times(AT, 9, "sensitivity")),
    ),
    "an input is large": (
        "outlier sample",
        AT,
        run_of(at_step(AT, input_norm_max=4000.0, sensitivity=90.0, r_times_median=400.0)),
    ),
    "an input is large in a step that nobody watched": (
        "outlier sample",
        AT,
        run_of(at_step(AT, input_norm_max=4000.0, tau=3.0), unwatched),
    ),
    "a sample moves alone": ("outlier sample", AT, run_of(at_step(AT, sensitivity=90.0, r_times_median=60.0))),
    "a sample has all of the loss": (
        "outlier sample",
        AT,
        run_of(at_step(AT, loss=4.0, loss_max=250.0, gradient_norm=20.0, tau=2.0)),
    ),
    "inputs are ten times as large": (
        "unusual batch",
        AT,
        run_of(at_step(AT, input_norm=40.0, input_norm_max=50.0, sensitivity=50.0)),
    ),
    "a batch of two": ("smaller batch", AT, run_of(at_step(AT, samples=2, inputs=2, gradient_norm=25.0, tau=2.5))),
    "labels are wrong": (
        "label noise",
        AT,
        run_of(times(AT, 10, "loss", "gradient_norm", "tau", until=AT + 9)),
    ),
    "labels are wrong in a step that nobody watched": (
        "label noise",
        AT,
        run_of(at_step(AT, gradient_norm=9.0, tau=0.8), unwatched),
    ),
    "momentum adds up": (
        "momentum build-up",
        72,
        run_of(lambda now, v: {"tau": v["tau"] * (1 + 0.3 * max(0, now - AT))}, groups={"momentum": 0.99}),
    ),
    "weights are another's": ("weight blow-up", AT, run_of(times(AT, 20, "weight_norm"), times(AT, 9, "sensitivity"))),
    "weights grow by themselves": (
        "weight blow-up",
        78,
        run_of(lambda now, v: {"weight_norm": 10 + 0.09 * max(0, now - 30) + 0.02 * max(0, now - 30) ** 1.5,
                               "tau": 0.1 + 0.002 * max(0, now - 30), "sensitivity": 2 * 1.02 ** max(0, now - 30)},
               groups={"weight_decay": -0.5}, steps=140),
    ),
    "the second moment is forgotten": ("optimizer state", AT, run_of(times(AT, 12, "tau", until=AT + 3))),
    "a gradient is not finite": (
        "not finite",
        AT,
        run_of(at_step(AT, gradient_norm=math.inf, tau=math.nan, scale=0.0)),
    ),
    "the logits answer by more": ("growing sensitivity", AT, run_of(times(AT, 20, "sensitivity"))),
    "it is too long from the start": (
        "learning rate too high from the start",
        0,
        run_of(lambda now, v: {"tau": 50 * v["tau"]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_the_cause_is_found(name):
    cause, step, run = HELD[name]
    found = diagnose(run)
    assert (found.cause, found.step) == (cause, step)
    assert found.main.evidence and all(evidence.strip() for evidence in found.main.evidence)


HEALTHY = {
    "nothing": run_of(),
    "the rate doubles far below the target": run_of(times(AT, 2, "lr", "tau")),
    "a crossing by a little": run_of(at_step(AT, sensitivity=12.0)),
    "the first steps are over by a little": run_of(lambda now, v: {"tau": 0.8} if now < 4 else None),
    "batches differ near the target": run_of(lambda now, v: {"tau": 0.4 + 0.15 * math.sin(3 * now)}),
    "a loss that is larger now and then": run_of(lambda now, v: {"loss": 1.4} if now % 20 == 7 else None),
    "weights that grow as they learn": run_of(lambda now, v: {"weight_norm": 10 + 0.02 * now}),
    "no readings at all": run_of(steps=0),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm(name):
    found = diagnose(HEALTHY[name])
    assert found.cause == "healthy" and found.step is None and found.main is None


def look(step, headroom, share, dtype):
    return CollapseReading(step, 64, share, headroom, headroom - 1, headroom + 5, dtype, 10)


def test_half_precision_collapses_and_float32_by_few_samples_does_not():
    for dtype, cause in {"float16": "softmax collapse", "float32": "healthy"}.items():
        run = run_of()
        for step in range(0, 100, 10):
            run.collapses.append(look(step, 8.0 - step / 10, 0.03 if step >= 80 else 0.0, dtype))
        assert diagnose(run).cause == cause
    run = run_of()
    for step in range(0, 100, 10):
        run.collapses.append(look(step, 6.0 - step / 10, step / 100 if step >= 60 else 0.0, "float32"))
    found = diagnose(run)
    assert (found.cause, found.step) == ("softmax collapse", 60)


def test_half_precision_is_seen_by_the_guard_where_there_is_no_monitor():
    run = run_of(lambda now, v: {"collapse": max(0.0, (now - 70) / 100)})
    found = diagnose(run)
    assert (found.cause, found.step) == ("softmax collapse", 72)
    assert "in half precision for 2.0% of the samples, at step 99 for 29.0%" in found.main.evidence[0]


def test_a_collapse_that_weights_brought_about_is_theirs():
    run = run_of(times(AT, 40, "weight_norm"))
    for step in range(0, 100, 10):
        run.collapses.append(look(step, 8.0 if step <= AT else -50.0, 0.9 if step > AT else 0.0, "float32"))
    found = diagnose(run)
    assert (found.cause, found.step, found.main.began) == ("weight blow-up", 70, 60)


def test_a_new_process_and_a_changed_setting_are_told():
    run = run_of(times(AT, 12, "tau", "gradient_norm", until=AT + 2))
    run.starts.append({**run.starts[0], "time": AT - 0.5})
    assert diagnose(run).cause == "warm restart"
    run.starts[1] = {**run.starts[0], "time": AT - 0.5, "groups": [{"lr": 0.1, "betas": [0.9, 0.5]}]}
    run.starts[0] = {**run.starts[0], "groups": [{"lr": 0.1, "betas": [0.9, 0.999]}]}
    found = diagnose(run)
    assert found.cause == "optimizer state" and "beta2 was changed from 0.999 to 0.5" in found.main.evidence[0]
    run = run_of(times(AT, 12, "tau"))
    data = {"group": 0, "name": "momentum", "before": 0.9, "now": 0.99}
    run.events.append(Event(AT - 3, "changed", "step 57: momentum ...", data=data))
    assert diagnose(run).cause == "momentum build-up"


def test_a_setting_that_was_changed_on_the_way_is_not_told_again_when_the_run_goes_on():
    run = run_of()
    run.starts[0] = {**run.starts[0], "groups": [{"lr": 0.1, "momentum": 0.9, "eps": 1e-8}]}
    run.starts.append({**run.starts[0], "time": 79.5, "groups": [{"lr": 0.1, "momentum": 0.99, "eps": 1e-4}]})
    data = {"group": 0, "name": "momentum", "before": 0.9, "now": 0.99}
    run.events.append(Event(30, "changed", "step 30: momentum ...", data=data))
    assert changed_settings(run) == (Setting(30, "momentum", 0.9, 0.99), Setting(80, "eps", 1e-8, 1e-4))


def test_a_burst_of_loss_within_the_target_is_told():
    run = run_of(
        lambda now, v: {"loss": 9.0, "loss_max": 20.0, "gradient_norm": 3.0, "tau": 0.3} if AT <= now < AT + 5 else None
    )
    found = diagnose(run)
    assert (found.cause, found.step, found.main.beyond) == ("label noise", AT, 0)
    assert found.main.evidence[-1] == "r stayed within its target of 1"


def test_what_came_first_is_told_and_what_follows_is_there_too():
    run = run_of(times(AT, 30, "lr", "tau", until=AT + 2), at_step(90, sensitivity=90.0, input_norm_max=4000.0))
    found = diagnose(run)
    assert [(f.cause, f.step) for f in found.findings] == [("learning rate jump", AT), ("outlier sample", 90)]
    assert found.main == found.findings[0]


def test_something_from_outside_is_told_rather_than_what_grew_by_itself():
    run = run_of(
        lambda now, v: {"sensitivity": 2 * 1.3 ** (now - 12)} if 12 <= now < 30 else None,
        times(80, 30, "lr", "tau"),
    )
    found = diagnose(run)
    assert found.findings[0].cause == "growing sensitivity" and found.findings[0].serious
    assert (found.cause, found.step) == ("learning rate jump", 80)


def test_of_very_many_stretches_the_first_and_the_worst_are_looked_into():
    steps = 22_500
    run = run_of(
        lambda now, v: {"sensitivity": 12.0} if now % 22 == 10 else None,
        at_step(22_010, sensitivity=90.0, input_norm_max=4000.0),
        steps=steps,
    )
    found = diagnose(run)
    assert 500 < len(found.findings) <= 1000 and (found.cause, found.step) == ("outlier sample", 22_010)
