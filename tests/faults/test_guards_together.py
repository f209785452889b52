"""Two guards on one optimizer, detaching in the middle of things, copies and pickles, steps that raise."""

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from fault_run import Run, X, Y, changed, everything, hooks_of, of_torch, place, unguarded_step
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer

import stepguard
from stepguard.callbacks import StepGuard
from stepguard.records import Memory

# Actions of two guards on one optimizer.
REFUSED = [("clamp", "clamp"), ("clamp", "drive"), ("drive", "clamp"), ("drive", "drive")]
TOGETHER = [("observe", "observe"), ("observe", "clamp"), ("clamp", "observe"), ("observe", "drive")]


@pytest.mark.parametrize(("first", "second"), REFUSED)
def test_a_second_guard_that_changes_steps_is_refused(first, second):
    run = Run({"action": first, "target": 0.02}, monitored=False)
    hooks = len(hooks_of(run))
    with pytest.raises(ValueError, match=f"guarded already, with action='{first}'.*action=\"observe\""):
        stepguard.attach(run.model, run.optimizer, action=second)
    assert len(hooks_of(run)) == hooks
    run.steps(2)
    assert run.measured() == [0, 1]
    run.detach()
    again = stepguard.attach(run.model, run.optimizer, action=second)
    run.steps(1)
    assert again.last.step == 0
    again.detach()
    assert not hooks_of(run)


@pytest.mark.parametrize(("first", "second"), TOGETHER)
def test_one_that_observes_beside_another_sees_what_is_left_for_it(first, second):
    changes = next((action for action in (first, second) if action != "observe"), "observe")
    alone = Run({"action": changes, "target": 0.02})
    alone.steps(6)
    run, memory = Run({"action": first, "target": 0.02}), Memory()
    settings = {"cadence": "every", "recorders": [memory], "strict": True}
    run.on.append(stepguard.attach(run.model, run.optimizer, action=second, target=0.02, **settings))
    run.steps(6)
    assert all(map(torch.equal, alone.parameters(), run.parameters()))
    mine, others = [r.r for r in run.memory.readings], [r.r for r in memory.readings]
    if (first, second) == ("clamp", "observe"):  # hooked in after the clamp
        assert others == pytest.approx([r.r * r.scale for r in run.memory.readings], rel=1e-3) and max(others) <= 0.0201
    else:
        assert mine == pytest.approx(others, rel=1e-5) and len(mine) == 6
    for each in (run, alone):
        each.detach()
        assert not hooks_of(each)


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(12, 5)
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.1)

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_callback_beside_a_guard_is_refused_too():
    module = Module()
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=3)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    with stepguard.attach(module, module.optimizer), pytest.raises(MisconfigurationException, match="guarded already"):
        Trainer(max_epochs=1, callbacks=[StepGuard()], accelerator="cpu", **quiet).fit(module, data)


def between_backward_and_step(run):
    run.backward()
    run.detach()
    run.optimizer.step()


def inside_the_closure(run):
    def closure():
        loss = run.backward()
        run.detach()
        return loss

    run.optimizer.step(closure)


def inside_the_forward(run):
    handle = run.model.head.register_forward_hook(lambda *_: run.detach())
    run.backward()
    handle.remove()
    run.optimizer.step()


def inside_the_backward(run):
    handle = run.model.head.bias.register_hook(lambda gradient: run.detach())
    run.backward()
    handle.remove()
    run.optimizer.step()


def in_a_hook_before_the_step(run):
    run.backward()
    handle = run.optimizer.register_step_pre_hook(lambda *_: run.detach())
    run.optimizer.step()
    handle.remove()


def in_a_hook_after_the_step(run):
    run.backward()
    handle = run.optimizer.register_step_post_hook(lambda *_: run.detach())
    run.optimizer.step()
    handle.remove()


# Where detach is called, and whether that step is still the guard's.
MIDDLES = {
    "between backward and step": (between_backward_and_step, False),
    "in the closure": (inside_the_closure, False),
    "in a forward": (inside_the_forward, False),
    "in a backward": (inside_the_backward, False),
    "in a hook before the step": (in_a_hook_before_the_step, False),
    "in a hook after the step": (in_a_hook_after_the_step, True),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_detached_in_the_middle_nothing_is_left_behind(middle):
    work, measured = MIDDLES[middle]
    plain = Run()
    plain.steps(5)
    mine, state, run = everything(plain), of_torch(), Run({"target": 1e6})
    run.steps(2)
    work(run)
    run.detach()
    assert not hooks_of(run) and not changed(state, of_torch()) and len(run.measured()) == 2 + measured
    run.steps(2)
    assert set(changed(mine, everything(run))) == {"tensors of modules", "memory of tensors"}  # it is another model
    assert len(run.measured()) == 2 + measured


def test_detached_within_a_measurement_the_step_is_finished():
    run = Run({"target": 0.02, "strict": True}, monitored=False)
    run.steps(2)
    handle = run.model.head.register_forward_hook(lambda *_: None if torch.is_grad_enabled() else run.detach())
    run.backward()
    old, new = run.parameters(), unguarded_step(run)
    run.optimizer.step()
    handle.remove()
    assert (
        place(old, new, run.parameters()) == "clamped"
        and not hooks_of(run)
        and run.guard._change._movement.params == []
    )


def test_gradients_that_are_withheld_come_back_where_the_step_never_ended():
    run = Run({"target": 0.02}, monitored=False)
    run.steps(1)
    run.backward(X * float("nan"))
    gradients = [p.grad for p in run.model.parameters()]

    def fail(*_):
        raise KeyboardInterrupt

    handle = run.optimizer.register_step_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step()
    handle.remove()
    run.detach()
    assert all(p.grad is g for p, g in zip(run.model.parameters(), gradients, strict=True))


def trained_on(model, optimizer):
    torch.manual_seed(5)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def deep_copied(model, optimizer):
    return copy.deepcopy((model, optimizer))


def pickled(model, optimizer):
    return pickle.loads(pickle.dumps((model, optimizer)))


def saved(model, optimizer):
    file = io.BytesIO()
    torch.save({"model": model, "optimizer": optimizer}, file)
    file.seek(0)
    found = torch.load(file, weights_only=False)
    return found["model"], found["optimizer"]


# From a model and its optimizer to copies of both.
COPIES = {"deepcopy": deep_copied, "pickle": pickled, "torch.save of the objects": saved}


@pytest.mark.parametrize("holds_its_guard", [False, True])
@pytest.mark.parametrize("when", ["between steps", "between backward and step"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_unguarded_and_the_original_stays_guarded(how, when, holds_its_guard):
    plain, run = Run(), Run({"target": 0.02})
    if holds_its_guard:
        run.model.guard, run.model.monitor = run.guard, run.monitor
    run.steps(3)
    plain.model.load_state_dict(run.model.state_dict())
    plain.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    if when != "between steps":
        run.backward()
    model, optimizer = COPIES[how](run.model, run.optimizer)
    assert all(p is q for p, q in zip(model.parameters(), optimizer.param_groups[0]["params"], strict=True))
    if holds_its_guard:
        assert model.guard is None and model.monitor is None and run.model.guard is run.guard
    if when != "between steps":
        run.optimizer.step()
    seen = len(run.measured())
    want, got = trained_on(plain.model, plain.optimizer), trained_on(model, optimizer)
    assert all(map(torch.equal, want, got)) and len(run.measured()) == seen
    run.steps(2)
    assert len(run.measured()) == seen + 2 and run.guard.last.scale < 1
    if holds_its_guard:
        del run.model.guard, run.model.monitor
    run.detach()
    assert not hooks_of(run)


def test_a_copy_of_a_guard_is_none():
    run = Run({})
    assert copy.deepcopy(run.guard) is None and pickle.loads(pickle.dumps(run.monitor)) is None
    run.detach()


def test_after_a_step_that_raised_the_next_is_measured_and_nothing_is_counted_twice():
    run = Run({"target": 0.02, "strict": True})
    run.steps(2)
    run.backward()
    group = run.optimizer.param_groups[0]
    betas = group.pop("betas")
    before = run.parameters()
    with pytest.raises(KeyError):
        run.optimizer.step()
    group["betas"] = betas
    assert all(map(torch.equal, before, run.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.steps(3)
    assert run.measured() == [0, 1, 2, 3, 4] and run.guard.step == run.monitor.step == 5
    run.detach()


def test_attached_and_detached_many_times():
    plain = Run()
    plain.steps(12)
    run = Run()
    for index in range(6):
        with stepguard.attach(run.model, run.optimizer, action="observe", strict=True) as guard:
            with stepguard.monitor_collapse(run.model, run.optimizer) as monitor:
                run.steps(2)
                assert guard.last.step == 1 and monitor.step == 2, index
        assert not hooks_of(run)
    assert all(map(torch.equal, plain.parameters(), run.parameters()))
