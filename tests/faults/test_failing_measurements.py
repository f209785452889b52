"""Whatever fails while measuring: the step stands as the optimizer made it, one warning, and the next is measured."""

import itertools
import pkgutil
import random
import warnings

import pytest
import torch
from fault_run import Run, around, changed, hooks_of, place, unguarded_step
from injections import OutOfMemoryAt


def in_replay(part, number=1, error=RuntimeError):
    """The n-th call of a part of the model that is made to measure."""

    def arm(run, monkeypatch):
        calls = itertools.count(1)

        def hook(module, args):
            if not torch.is_grad_enabled() and next(calls) == number:
                raise error("broken on purpose")

        run.model.get_submodule(part).register_forward_pre_hook(hook)

    return arm


def in_ours(name, number=1, error=RuntimeError):
    """The n-th call of one of stepguard's own functions, ``module:name``."""

    def arm(run, monkeypatch):
        inner, calls = pkgutil.resolve_name(name), itertools.count(1)

        def broken(*args, **kwargs):
            if next(calls) == number:
                raise error("broken on purpose")
            return inner(*args, **kwargs)

        monkeypatch.setattr(name.replace(":", "."), broken)

    return arm


# What fails in the fourth step, whose slopes are also checked with differences.
FAILURES = {
    "the first layer, run again": in_replay("body.0"),
    "the last layer, run again": in_replay("head"),
    "a later run, at moved parameters": in_replay("head", 4),
    "no memory in a later run": in_replay("head", 3, torch.OutOfMemoryError),
    "the kernels to be used": in_ours("stepguard.probe.rerun:differentiable"),
    "dual tensors in place of parameters": in_ours("stepguard.probe.whole:replaced"),
    "other values in place of parameters": in_ours("stepguard.probe.whole:data_replaced", 3),
    "what modules remember": in_ours("stepguard.probe.rerun:no_traces", 2),
    "random numbers": in_ours("stepguard.probe.rerun:random_state", 2),
    "the comparison with what training saw": in_ours("stepguard.probe.rerun:same"),
    "the softmaxes of the loss": in_ours("stepguard.probe.probe:batches"),
    "the estimator": in_ours("stepguard.probe.estimator:SlopeEstimator.spreads"),
    "a difference": in_ours("stepguard.probe.estimator:spreads_by_difference"),
    "a gradient that comes by": in_ours("stepguard.probe.passes:Passes.reach"),
    "a module that is entered": in_ours("stepguard.probe.memory:ForwardMemory.keep"),
    "theta_old": in_ours("stepguard.guard.movement:Movement.begin"),
    "the update": in_ours("stepguard.guard.movement:Movement.end"),
    "gradients that are looked at": in_ours("stepguard.guard.ranks:check_gradients"),
    "the word of the other ranks": in_ours("stepguard.guard.ranks:Ranks.agree"),
    "what nobody thought of": in_ours("stepguard.guard.calm:Calm.scale"),
}


ONLY_WHERE_STEPS_ARE_CHANGED = {"gradients that are looked at", "what nobody thought of"}


@pytest.mark.parametrize(
    ("fault", "action"),
    [(f, a) for f in FAILURES for a in ("observe", "clamp") if a == "clamp" or f not in ONLY_WHERE_STEPS_ARE_CHANGED],
)
def test_a_failure_ends_nothing_and_changes_nothing(fault, action, monkeypatch):
    run = Run({"target": 0.02, "action": action}, monitored=False)
    run.steps(3)
    FAILURES[fault](run, monkeypatch)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.backward()
        drawn = torch.get_rng_state()
        old, new, buffers = run.parameters(), unguarded_step(run), run.buffers()
        torch.set_rng_state(drawn)
        before = around(run)
        run.optimizer.step()
    assert place(old, new, run.parameters()) == "theta_new"
    assert changed(before, around(run)) == [] and all(map(torch.equal, buffers, run.buffers()))
    assert len(said) == 1 and "broken on purpose" in str(said[0].message), [str(w.message) for w in said]
    assert [(e.step, e.kind) for e in run.memory.events if e.kind == "unmeasured"] == [(3, "unmeasured")]
    run.steps(2)
    assert run.measured() == [0, 1, 2, 4, 5] and (run.guard.last.scale < 1) == (action == "clamp")
    run.detach()
    assert len(hooks_of(run)) == fault.endswith(("run again", "later run", "moved parameters"))


# Settings, and steps before the one that runs out of memory.
MEMORY = {
    "the very first step": ({"target": 0.02}, 0),
    "forward mode alone": ({"target": 0.02}, 2),
    "forward mode and differences": ({"target": 0.02}, 3),
    "a secant": ({"target": 0.5, "cadence": "auto", "screen": True}, 8),
}
SAMPLED = 12


def out_of_memory(settings, steps, n):
    run = Run(settings)
    run.steps(steps)
    run.backward()
    drawn = torch.get_rng_state()
    old, new, buffers = run.parameters(), unguarded_step(run), run.buffers()
    torch.set_rng_state(drawn)
    before, fault = around(run), OutOfMemoryAt(n)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with fault:
            run.optimizer.step()
    at = place(old, new, run.parameters())
    wrong = changed(before, around(run)) + ([] if all(map(torch.equal, buffers, run.buffers())) else ["buffers"])
    if fault.where:
        # The guard's step stands, or it is the monitor that could not look, or a check went without its difference.
        wrong += [] if len(said) <= 1 and all("out of memory" in str(w.message) for w in said) else list(map(str, said))
        wrong += [] if at == "theta_new" or not any("not measured" in str(w.message) for w in said) else [at]
    seen = run.measured()
    run.steps(2)
    wrong += [] if run.measured()[len(seen) :] == [steps + 1, steps + 2] or "cadence" in settings else ["not measured"]
    run.detach()
    return wrong + [f"left behind: {h}" for h in hooks_of(run)] + (["in between"] if at == "in between" else []), fault


@pytest.mark.parametrize("how", MEMORY)
def test_no_memory_at_any_allocation(how):
    settings, steps = MEMORY[how]
    _, whole = out_of_memory(settings, steps, n=10**9)
    for n in sorted(random.Random(0).sample(range(1, whole.calls + 1), SAMPLED)):
        wrong, fault = out_of_memory(settings, steps, n)
        assert fault.where and not wrong, f"at allocation {n} of {whole.calls} ({fault.where}): {wrong}"
