"""Several optimizers in manual optimization: each is measured on its own losses, with only its own parameters moved."""

import copy
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matrix.task import Task, binary, reference_r
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_lightning import Module, data, heard, scalars, trainer
from test_lightning import pytestmark as pytestmark
from torch import nn

from stepguard.callbacks import SoftmaxCollapseMonitor, StepGuard
from stepguard.records import COLLAPSE_METRICS, METRICS

REAL, FAKE = torch.ones(4, 1), torch.zeros(4, 1)


class Pair(LightningModule):
    """Two parts, an optimizer each; ``found`` has, for every step, the optimizer, its r and the reference."""

    def __init__(self, rates=(0.3, 0.3)):
        super().__init__()
        self.automatic_optimization, self.rates, self.found = False, rates, []

    @property
    def parts(self):
        return list(self.children())[:2]

    def configure_optimizers(self):
        return [torch.optim.SGD(p.parameters(), lr=lr) for p, lr in zip(self.parts, self.rates, strict=True)]

    def now(self):
        """A copy of the parts, before a step."""
        return copy.deepcopy(nn.ModuleList(self.parts))

    def step(self, number, logits, before=None, closure=None):
        """A step of one optimizer, and what r must be: ``logits`` takes it from the (copied) parts to the logits."""
        before = before or self.now()
        start = self.now()
        self.optimizers()[number].step(closure=closure) if closure else self.optimizers()[number].step()
        pairs = zip(nn.ModuleList(self.parts).named_parameters(), start.parameters(), strict=True)
        update = {name: (p - old).detach().double() for (name, p), old in pairs}
        reference = reference_r(Task(before, None, logits), before, update)
        (guard,) = [c for c in self.trainer.callbacks if isinstance(c, StepGuard)]
        self.found.append((number, guard.guards[number].last.r, reference))


class GAN(Pair):
    def __init__(self, rates=(0.3, 0.3)):
        super().__init__(rates)
        self.discriminator = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
        self.generator = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 12))

    def forward(self, noise):
        return self.generator(noise)

    def judged(self, real, noise):
        """The discriminator's loss."""
        fake = self.generator(noise).detach()
        d = self.discriminator
        return F.binary_cross_entropy_with_logits(d(real), REAL) + F.binary_cross_entropy_with_logits(d(fake), FAKE)

    def believed(self, noise):
        """The generator's loss."""
        return F.binary_cross_entropy_with_logits(self.discriminator(self.generator(noise)), REAL)

    def training_step(self, batch, index):
        real, noise = batch[0], batch[0].flip(0) * 0.7
        self.discriminator_step(real, noise)
        self.generator_step(noise)

    def clear(self, number):
        self.optimizers()[number].zero_grad()

    def discriminator_step(self, real, noise):
        self.clear(0)
        self.manual_backward(self.judged(real, noise))
        self.step(0, lambda m: [binary(m[0](x)) for x in (real.double(), m[1](noise.double()))])

    def generator_step(self, noise):
        self.clear(1)
        self.manual_backward(self.believed(noise))
        self.step(1, lambda m: [binary(m[0](m[1](noise.double())))])


class Toggled(GAN):
    def discriminator_step(self, real, noise):
        self.toggle_optimizer(self.optimizers()[0])
        super().discriminator_step(real, noise)
        self.untoggle_optimizer(self.optimizers()[0])

    def generator_step(self, noise):
        self.toggle_optimizer(self.optimizers()[1])
        super().generator_step(noise)
        self.untoggle_optimizer(self.optimizers()[1])


class GeneratorFirst(GAN):
    def training_step(self, batch, index):
        real, noise = batch[0], batch[0].flip(0) * 0.7
        self.generator_step(noise)
        self.discriminator_step(real, noise)


class OneFake(GAN):
    """The generator runs once, by the forward of the whole module, and both losses use what it made."""

    def training_step(self, batch, index):
        real, noise = batch[0], batch[0].flip(0) * 0.7
        fake, d = self(noise), self.discriminator
        loss = F.binary_cross_entropy_with_logits(d(real), REAL)
        loss = loss + F.binary_cross_entropy_with_logits(d(fake.detach()), FAKE)
        self.optimizers()[0].zero_grad()
        self.manual_backward(loss)
        self.step(0, lambda m: [binary(m[0](x)) for x in (real.double(), m[1](noise.double()))])
        self.optimizers()[1].zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(d(fake), REAL))
        self.step(1, lambda m: [binary(m[0](m[1](noise.double())))])


class TwoToOne(GAN):
    def training_step(self, batch, index):
        real, noise = batch[0], batch[0].flip(0) * 0.7
        self.discriminator_step(real, noise)
        if index % 2:
            self.generator_step(noise)


class ClearedToZero(GAN):
    """The gradients of the other loss are still there, as zeros."""

    def clear(self, number):
        self.optimizers()[number].zero_grad(set_to_none=False)


class ClearedAfterwards(GAN):
    def training_step(self, batch, index):
        super().training_step(batch, index)
        self.zero_grad()


class Closures(GAN):
    def discriminator_step(self, real, noise):
        def closure():
            self.optimizers()[0].zero_grad()
            loss = self.judged(real, noise)
            self.manual_backward(loss)
            return loss

        self.step(0, lambda m: [binary(m[0](x)) for x in (real.double(), m[1](noise.double()))], closure=closure)


class TeacherAndStudent(Pair):
    def __init__(self, rates=(0.3, 0.3)):
        super().__init__(rates)
        self.teacher = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
        self.student = nn.Linear(12, 5)

    def training_step(self, batch, index):
        x, y = batch
        teacher, student = self.optimizers()
        taught = self.teacher(x)
        teacher.zero_grad()
        self.manual_backward(F.cross_entropy(taught, y))
        self.step(0, lambda m: [m[0](x.double())])
        answer = self.student(x)
        soft = F.softmax(self.teacher(x).detach() / 2, -1)
        likeness = F.kl_div(F.log_softmax(answer / 2, -1), soft, reduction="batchmean")
        student.zero_grad()
        self.manual_backward(likeness + F.cross_entropy(answer, y))
        self.step(1, lambda m: [m[1](x.double()) / 2, m[1](x.double())])


class BodyAndHead(Pair):
    """Two optimizers that share a backward pass; each is measured at the point from which the gradients are."""

    def __init__(self, rates=(0.3, 0.3)):
        super().__init__(rates)
        self.body, self.head = nn.Sequential(nn.Linear(12, 8), nn.Tanh()), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, index):
        x, y = batch
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        before = self.now()
        self.manual_backward(F.cross_entropy(self(x), y))
        for number in (0, 1):
            self.step(number, lambda m: [m[1](m[0](x.double()))], before)


class Row(NamedTuple):
    module: type[Pair]
    steps: list[int]
    """Of which optimizer, in four batches."""
    trainer: dict[str, Any] = {}


BY_TURNS = [0, 1] * 4
ROWS = {
    "a GAN": Row(GAN, BY_TURNS),
    "a GAN, optimizers toggled": Row(Toggled, BY_TURNS),
    "a GAN, the generator first": Row(GeneratorFirst, [1, 0] * 4),
    "a GAN, one forward of the generator for both": Row(OneFake, BY_TURNS),
    "a GAN, two steps of the discriminator to one of the generator": Row(TwoToOne, [0, 0, 1] * 2),
    "a GAN, gradients set to zero": Row(ClearedToZero, BY_TURNS),
    "a GAN, gradients cleared after the step": Row(ClearedAfterwards, BY_TURNS),
    "a GAN, the discriminator by a closure": Row(Closures, BY_TURNS),
    "a GAN, bf16-mixed": Row(GAN, BY_TURNS, {"precision": "bf16-mixed"}),
    "a teacher and a student": Row(TeacherAndStudent, BY_TURNS),
    "two optimizers that share a backward pass": Row(BodyAndHead, BY_TURNS),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_optimizer_is_measured_on_its_own_losses(name, tmp_path):
    row = ROWS[name]
    module = row.module()
    trainer(tmp_path, StepGuard(action="observe", strict=True), **row.trainer).fit(module, data(batches=4))
    assert [number for number, _, _ in module.found] == row.steps
    readings, references = zip(*[found[1:] for found in module.found], strict=True)
    assert readings == pytest.approx(references, rel=0.05 if row.trainer else 1e-4)


SAMPLES = {GAN: {0: 8, 1: 4}, TeacherAndStudent: {0: 4, 1: 8}, BodyAndHead: {0: 4, 1: 4}}
"""How many samples the losses of each optimizer have, two softmaxes of one batch counted apart."""


@pytest.mark.parametrize("name", ROWS)
def test_each_monitor_sees_its_own_losses(name, tmp_path):
    row = ROWS[name]
    module, monitor = row.module(), SoftmaxCollapseMonitor(cadence=1, strict=True)
    guard = StepGuard(action="observe")
    trainer(tmp_path, guard, monitor, **row.trainer).fit(module, data(batches=4))
    expected = next(samples for kind, samples in SAMPLES.items() if isinstance(module, kind))
    assert {i: m.last.samples for i, m in enumerate(monitor.monitors)} == expected
    assert [m.step for m in monitor.monitors] == [g.step for g in guard.guards]


@pytest.mark.parametrize("module", [GAN, TeacherAndStudent, BodyAndHead])
def test_observing_is_invisible(module, tmp_path):
    results = []
    for callbacks in ([], [StepGuard(action="observe"), SoftmaxCollapseMonitor(cadence=1)]):
        torch.manual_seed(0)
        trained = module()
        trained.step = lambda number, *args, trained=trained, **kwargs: trained.optimizers()[number].step()
        run = trainer(tmp_path, *callbacks)
        run.fit(trained, data())
        results.append([trained.state_dict(), [o.state_dict() for o in run.optimizers], torch.get_rng_state()])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in trained.modules())
        assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in run.optimizers)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


class Targets(BodyAndHead):
    """Keeps the reference of what each optimizer was allowed, not of what it asked for."""

    def step(self, number, logits, before=None, closure=None):
        start = self.now()
        self.optimizers()[number].step()
        pairs = zip(nn.ModuleList(self.parts).named_parameters(), start.parameters(), strict=True)
        update = {name: (p - old).detach().double() for (name, p), old in pairs}
        self.found.append((number, reference_r(Task(before, None, logits), before, update)))


def test_each_optimizer_has_a_target_of_its_own(tmp_path):
    module = Targets(rates=(30.0, 30.0))
    guards = [StepGuard(optimizer=0, target=0.5, strict=True), StepGuard(optimizer=1, target=0.2, strict=True)]
    trainer(tmp_path, *guards).fit(module, data())
    made = [[r for number, r in module.found if number == i] for i in (0, 1)]
    assert [max(r) for r in made] == pytest.approx([0.5, 0.2], rel=1e-3)
    assert [len(guard.guards) for guard in guards] == [1, 1]


def test_names_have_the_index_of_the_optimizer(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv", version=""), TensorBoardLogger(tmp_path, name="tb", version="")]
    loggers[0].__class__ = type("Dashed", (CSVLogger,), {"group_separator": "-"})
    module = TwoToOne(rates=(500.0, 500.0))
    guard, monitor = StepGuard(target=0.2, strict=True), SoftmaxCollapseMonitor(cadence=1)
    seen = heard(guard)
    run = trainer(tmp_path, guard, monitor, logger=loggers, log_every_n_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "stepguard: optimizer ., step .* softmax collapse is near")
        run.fit(module, data())
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    metrics = [m.key() for m in METRICS + COLLAPSE_METRICS if m.name not in ("headroom_trend", "steps_to_collapse")]
    for number in (0, 1):
        assert {f"{name}/{number}".replace("/", "-") for name in metrics} <= set(header)
        assert {f"{name}/{number}" for name in metrics} <= set(run.callback_metrics)
        assert run.callback_metrics[f"stepguard/r/{number}"].item() == pytest.approx(guard.guards[number].last.r)
    assert not {"stepguard/r", "softmax/collapse", "stepguard-r"} & {*run.callback_metrics, *header}
    # The axis is that of self.log, batches, of which the generator steps at every second.
    assert set(scalars(tmp_path / "tb", "stepguard/r/0")) == {0, 1, 2, 3, 4, 5}
    assert set(scalars(tmp_path / "tb", "stepguard/r/1")) == {1, 3, 5}
    log = EventAccumulator(str(tmp_path / "tb"), size_guidance={"tensors": 0}).Reload()
    texts = [e.tensor_proto.string_val[0].decode() for e in log.Tensors("stepguard/events/text_summary")]
    for number in (0, 1):
        assert any(text.startswith(f"optimizer {number}, step") and "r = " in text for text in texts)
    assert all(event.message.startswith("optimizer ") for event in seen.events)
    assert guard.last == seen.readings[-1]


def test_the_axis_is_that_of_the_modules_own_metrics(tmp_path):
    class Logs(GAN):
        def training_step(self, batch, index):
            super().training_step(batch, index)
            self.log("train/index", float(index))

    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    run = trainer(tmp_path, StepGuard(), logger=logger, log_every_n_steps=2, max_epochs=2)
    run.fit(Logs(), data(batches=5))
    own = set(scalars(tmp_path / "tb", "train/index"))
    assert own == {1, 3, 5, 7, 9} and own == set(scalars(tmp_path / "tb", "stepguard/r/0"))
    assert run.global_step == 20  # the steps of both


def test_metrics_of_one_optimizer_can_be_watched(tmp_path):
    stop = EarlyStopping("stepguard/r/1", mode="min", stopping_threshold=1e9, check_on_train_epoch_end=True)
    run = trainer(tmp_path, StepGuard(), stop, max_epochs=3)
    run.fit(GAN(), data())
    assert run.current_epoch == 1


def test_warnings_say_which_optimizer(tmp_path):
    class Wasserstein(GAN):
        def believed(self, noise):
            return -self.discriminator(self.generator(noise)).mean()

        def step(self, number, *args, **kwargs):
            self.optimizers()[number].step()

    guard = StepGuard()
    with pytest.warns(UserWarning, match="stepguard: optimizer 1, step 0 was not measured.*No softmax"):
        trainer(tmp_path, guard).fit(Wasserstein(), data())
    assert guard.guards[0].last.step == 5 and guard.guards[1].last is None


def test_a_shared_backward_pass_with_only_one_guarded(tmp_path):
    class Plain(BodyAndHead):
        def step(self, number, *args, **kwargs):
            self.optimizers()[number].step()

    first, second = StepGuard(optimizer=0, strict=True), StepGuard(optimizer=1)
    trainer(tmp_path, first).fit(Plain(), data())  # it steps before the other
    assert first.last.step == 5
    with pytest.warns(UserWarning, match="optimizer 1, step 0 .*Another optimizer moved the model.*guard both"):
        trainer(tmp_path, second).fit(Plain(), data())


REFUSED = {
    "an index that is not there": (GAN, 2, r"StepGuard\(optimizer=2\): GAN configured 2, .* counted from 0 to 1"),
    "the second of one": (Module, 1, "Module configured 1, and they are counted from 0 to 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_optimizers_that_are_not_there(name, tmp_path):
    module, index, message = REFUSED[name]
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, StepGuard(optimizer=index)).fit(module(), data())


def test_an_optimizer_with_strangers_is_named(tmp_path):
    module = GAN()
    own = module.configure_optimizers()
    module.configure_optimizers = lambda: [own[0], torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)]
    with pytest.raises(MisconfigurationException, match="SoftmaxCollapseMonitor: optimizer 1, 2 of the optimizer's 2"):
        trainer(tmp_path, SoftmaxCollapseMonitor()).fit(module, data())


def test_an_optimizer_that_two_guards_would_change(tmp_path):
    module = Bare()
    with pytest.raises(MisconfigurationException, match="StepGuard: optimizer 1, this optimizer is guarded already"):
        trainer(tmp_path, StepGuard(optimizer=1), StepGuard()).fit(module, data())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    trainer(tmp_path, StepGuard(optimizer=1), StepGuard("observe")).fit(module, data())


@pytest.mark.parametrize("index", [-1, 1.0, True, "0"])
def test_an_index_that_cannot_be(index):
    with pytest.raises(ValueError, match="optimizer must be None .* or an index"):
        StepGuard(optimizer=index)


def test_one_optimizer_keeps_its_names_and_its_key(tmp_path):
    guard = StepGuard(optimizer=0)
    run = trainer(tmp_path, guard)
    run.fit(Module(), data())
    assert run.callback_metrics["stepguard/r"].item() == pytest.approx(guard.last.r)
    assert StepGuard().state_key == "StepGuard" and SoftmaxCollapseMonitor().state_key == "SoftmaxCollapseMonitor"
    keys = [callback(optimizer=i).state_key for callback in (StepGuard, SoftmaxCollapseMonitor) for i in (None, 0, 1)]
    assert len(set(keys)) == 6


CHECKPOINTS = {
    "all by one callback": [StepGuard(target=0.2), SoftmaxCollapseMonitor(cadence=2)],
    "one callback each": [StepGuard(optimizer=0, target=0.2), StepGuard(optimizer=1, target=0.1)],
    "only the second": [StepGuard(optimizer=1, target=0.2), SoftmaxCollapseMonitor(cadence=2, optimizer=1)],
    "none": [],
}


class Bare(GAN):
    def step(self, number, *args, **kwargs):
        self.optimizers()[number].step()


def fit(tmp_path, callbacks, epochs, checkpoint=None):
    torch.manual_seed(0)
    callbacks, module = copy.deepcopy(callbacks), Bare(rates=(10.0, 10.0))
    run = trainer(tmp_path, *callbacks, max_epochs=epochs)
    run.fit(module, data(), ckpt_path=checkpoint)
    return run, module, [without_time(c.state_dict()) for c in callbacks]


def without_time(state):
    """A state but for what was timed."""
    if isinstance(state, dict):
        return {k: without_time(v) for k, v in state.items() if k not in ("budget", "cost_share")}
    return state


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if CHECKPOINTS[name]])
def test_resume_equals_uninterrupted(name, tmp_path):
    callbacks = CHECKPOINTS[name]
    _, whole, states = fit(tmp_path, callbacks, 4)
    first, _, _ = fit(tmp_path, callbacks, 2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, again = fit(tmp_path, callbacks, 4, tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert again == states


@pytest.mark.parametrize("first", CHECKPOINTS)
@pytest.mark.parametrize("second", CHECKPOINTS)
def test_checkpoints_are_exchangeable(first, second, tmp_path):
    run, _, _ = fit(tmp_path, CHECKPOINTS[first], 1)
    run.save_checkpoint(tmp_path / "any.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        run, _, _ = fit(tmp_path, CHECKPOINTS[second], 2, tmp_path / "any.ckpt")
    known = {c.state_key for c in CHECKPOINTS[first]}
    for callback in (c for c in run.callbacks if isinstance(c, StepGuard)):
        steps = 12 if callback.state_key in known else 6
        assert [guard.step for guard in callback.guards] == [steps] * len(callback.guards)
