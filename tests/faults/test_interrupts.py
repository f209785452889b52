"""Ctrl-C at any call inside stepguard: it comes out, nothing stays in between, and the run can go on."""

import itertools
import random
import signal
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from fault_run import Run, X, Y, around, changed, hooks_of, of_torch, place, unguarded_step
from injections import SignalAt
from torch import nn

import stepguard
from stepguard.guard.interrupts import uninterrupted

SAMPLED = 14
"""Calls that are tried of each, of 300 to 9,000, by a seeded draw."""


def by_a_difference(monkeypatch):
    monkeypatch.setattr("stepguard.probe.estimator._spreads_along", lambda rerun: 1 / 0)


# How the step is measured that Ctrl-C comes into: the guard's settings, steps before it, and what is broken first.
MEASUREMENTS = {
    "clamped, by forward mode": ({"target": 0.02}, 2, None),
    "clamped, by forward mode checked with a difference": ({"target": 0.02}, 3, None),
    "clamped, by a difference": ({"target": 0.02}, 2, by_a_difference),
    "let through, by a secant": ({"target": 0.5, "cadence": "auto", "screen": True}, 8, None),
    "observed": ({"action": "observe"}, 2, None),
}


def goes_on(run):
    """What is wrong with the steps after an interruption, and with what a guard leaves behind at its end."""
    wrong, seen = [], len(run.measured())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.steps(3)
    if len(run.measured()) - seen < (1 if run.guard._settings.cadence == "auto" else 3) or said:
        wrong.append(f"the next steps: {run.measured()} {[str(w.message) for w in said]}")
    run.detach()
    return wrong + [f"left behind: {hook}" for hook in hooks_of(run)]


def interrupted_step(settings, steps, n):
    """What is wrong after Ctrl-C at the n-th call in a step, where the parameters are, and the fault."""
    run = Run(settings)
    run.steps(steps)
    rng = torch.get_rng_state()
    run.backward()
    old, new = run.parameters(), unguarded_step(run)
    torch.set_rng_state(rng)
    gradients, buffers, before = [p.grad for p in run.model.parameters()], run.buffers(), around(run)
    wrong, fault, came_out = [], SignalAt(n), False
    try:
        with fault:
            run.optimizer.step()
    except KeyboardInterrupt:
        came_out = True
    if fault.where and not came_out:
        wrong.append("it did not come out")
    wrong += changed(before, around(run))
    if not all(p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True)):
        wrong.append("gradients")
    if not all(map(torch.equal, buffers, run.buffers())):
        wrong.append("buffers")
    at = place(old, new, run.parameters())
    return wrong + goes_on(run), at, fault


@pytest.mark.parametrize("how", MEASUREMENTS)
def test_ctrl_c_in_a_step_leaves_nothing_in_between(how, monkeypatch):
    settings, steps, break_first = MEASUREMENTS[how]
    if break_first:
        break_first(monkeypatch)
        monkeypatch.setattr("warnings.warn", lambda *args, **kwargs: None)
    _, _, whole = interrupted_step(settings, steps, n=10**9)
    draw, places = random.Random(0), set()
    for n in sorted(draw.sample(range(1, whole.calls), SAMPLED)):
        wrong, at, fault = interrupted_step(settings, steps, n)
        assert not wrong and at != "in between", f"at call {n} ({fault.where}): {at}, {wrong}"
        assert fault.where
        places.add(at)
    # Most calls belong to the measurement, which is finished first.
    assert ("clamped" if settings.get("target") == 0.02 else "theta_new") in places


def test_ctrl_c_in_a_forward_or_backward_leaves_a_run_that_can_go_on():
    def interrupted(n):
        run = Run({"target": 0.02})
        run.steps(2)
        state, fault = of_torch(), SignalAt(n)
        try:
            with fault:
                run.backward()
        except KeyboardInterrupt:
            pass
        return changed(state, of_torch()) + goes_on(run), fault

    _, whole = interrupted(n=10**9)
    for n in sorted(random.Random(0).sample(range(1, whole.calls), SAMPLED)):
        wrong, fault = interrupted(n)
        assert not wrong, f"at call {n} ({fault.where}): {wrong}"


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.calls = nn.Linear(12, 16), nn.Linear(16, 5), 0


@pytest.mark.parametrize("part", ["body", "head"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_error_of_the_users_own_in_a_part_of_the_model_hides_no_later_step(part, error):
    run = Run({"target": 0.02, "strict": True}, monitored=False, build=TwoParts)
    broken = False

    def fail(module, args):
        if broken:
            raise error

    getattr(run.model, part).register_forward_pre_hook(fail)

    def step():
        run.optimizer.zero_grad()
        F.cross_entropy(run.model.head(run.model.body(X).relu()), Y).backward()
        run.optimizer.step()

    for index in range(4):
        broken = index == 2
        try:
            step()
        except error:
            assert broken
    assert run.measured() == [0, 1, 2] and run.memory.readings[-1].scale < 1
    run.detach()
    assert changed(of_torch(), of_torch()) == [] and len(hooks_of(run)) == 1  # the user's own


# What a replayed forward may raise that is no Exception, and that must not be taken for a failed measurement.
BEYOND_EXCEPTIONS = [KeyboardInterrupt, SystemExit, GeneratorExit]


@pytest.mark.parametrize("error", BEYOND_EXCEPTIONS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_a_replayed_forward_raises_beyond_exceptions_comes_out(error, call):
    run = Run({"target": 0.02})
    calls = itertools.count(1)  # a number in the closure would be put back by the replay

    def fail(module, args):
        if within and next(calls) == call:
            raise error

    within = False
    run.model.head.register_forward_pre_hook(fail)
    run.steps(3)
    run.backward()
    old, new = run.parameters(), unguarded_step(run)
    before, within = around(run), True
    with pytest.raises(error):
        run.optimizer.step()  # the fourth is checked with a difference, so the forward is run several times
    within = False
    assert changed(before, around(run)) == [] and place(old, new, run.parameters()) == "theta_new"
    seen = run.measured()
    run.steps(2)
    assert run.measured() == [*seen, 4, 5]
    run.detach()
    assert len(hooks_of(run)) == 1


def test_an_alarm_of_the_users_own_is_no_failure_to_measure():
    """Its handler raises what a measurement would take for its own error, were it not made to wait."""

    def too_late(number, frame):
        raise TimeoutError("the step took too long")

    run, within = Run({"target": 0.02}), False

    def set_an_alarm(module, args):
        if within:
            signal.setitimer(signal.ITIMER_REAL, 1e-6)

    run.model.head.register_forward_pre_hook(set_an_alarm)
    run.steps(2)
    run.backward()
    found = signal.signal(signal.SIGALRM, too_late)
    try:
        within = True
        with pytest.raises(TimeoutError, match="took too long"):
            run.optimizer.step()
        assert signal.getsignal(signal.SIGALRM) is too_late
    finally:
        within = False
        signal.signal(signal.SIGALRM, found)
    assert run.measured() == [0, 1, 2] and run.memory.readings[-1].scale < 1
    run.detach()


def test_a_second_ctrl_c_does_not_wait():
    told = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        told.append("waits")
        signal.raise_signal(signal.SIGINT)
        told.append("never told")
    assert told == ["waits"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_that_python_does_not_handle_and_other_threads_are_left_alone():
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    with uninterrupted():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert seen == [signal.default_int_handler]


def test_ctrl_c_within_a_lightning_fit_leaves_nothing_behind():
    from lightning.pytorch import LightningModule, Trainer

    from stepguard.callbacks import SoftmaxCollapseMonitor, StepGuard

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.replays = nn.Linear(12, 5), itertools.count()

        def forward(self, x):
            if not torch.is_grad_enabled() and next(self.replays) == 0:  # only a replay has none
                signal.raise_signal(signal.SIGINT)
            return self.net(x)

        def training_step(self, batch, index):
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module, guard = Module(), StepGuard(target=1e-3, strict=True)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=3)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[guard, SoftmaxCollapseMonitor()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    found = signal.getsignal(signal.SIGINT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a DataLoader without workers
            with pytest.raises((SystemExit, KeyboardInterrupt)):
                trainer.fit(module, data)
    finally:
        signal.signal(signal.SIGINT, found)  # Lightning leaves it ignored
    assert guard.last.step == 0 and guard.last.scale < 1  # the step that it came into was finished, and no more made
    assert not module._forward_hooks and not module.net._forward_hooks and not of_torch()["function modes"]
    assert stepguard.attach(module, module.configure_optimizers()).detach() is None
