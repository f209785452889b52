"""StepGuard in Lightning: what it logs, what it leaves alone, how it resumes, how it ends."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from reference import dense_r, mlp, parameters_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from stepguard.callbacks import StepGuard
from stepguard.records import METRICS, Memory

# Lightning's own notices about small runs on a CPU, and deprecations inside it; ours must still be errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]


class Module(LightningModule):
    def __init__(self, lr=0.1, loss=F.cross_entropy):
        super().__init__()
        self.model, self.lr, self.loss = mlp(), lr, loss

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, index):
        loss = self.loss(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def data(batches=6, size=4):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batches * size, 12, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(0, 5, (batches * size,), generator=generator)), batch_size=size)


def trainer(tmp_path, *callbacks, **settings):
    defaults = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "default_root_dir": tmp_path,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def heard(guard):
    """All readings and events of a StepGuard, as batches end."""
    memory, log = Memory(), guard._log

    def keep(trainer, notes, readings, events, step):
        memory.readings += readings
        memory.events += events
        log(trainer, notes, readings, events, step)

    guard._log = keep
    return memory


class Moves(Callback):
    """The parameters around every optimizer step, as the trainer makes it."""

    def __init__(self):
        self.r = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.old = parameters_of(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        new = parameters_of(module)
        if any(not torch.equal(new[n], self.old[n]) for n in new):
            self.r.append(dense_r(Module(), self.old, new, batch[0]))


@pytest.mark.parametrize("order", [1, -1])
def test_every_step_is_clamped_in_any_order_of_callbacks(order, tmp_path):
    moves, guard = Moves(), StepGuard(target=0.2, strict=True)
    trainer(tmp_path, *[guard, moves][::order]).fit(Module(lr=10.0), data())
    assert len(moves.r) == 6
    assert all(r <= 0.2 * (1 + 1e-4) for r in moves.r) and max(moves.r) == pytest.approx(0.2, rel=1e-4)


def test_observe_is_invisible(tmp_path):
    results = []
    for callbacks in ([], [StepGuard(action="observe", strict=True)]):
        torch.manual_seed(0)
        module = Module(lr=10.0)
        run = trainer(tmp_path, *callbacks, max_epochs=2)
        run.fit(module, data())
        results.append([module.state_dict(), run.optimizers[0].state_dict(), torch.get_rng_state()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def scalars(folder, tag):
    accumulator = EventAccumulator(str(folder)).Reload()
    return {e.step: e.value for e in accumulator.Scalars(tag)} if tag in accumulator.Tags()["scalars"] else {}


def test_tensorboard_gets_the_cadence_and_every_breach(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    run = trainer(tmp_path, StepGuard(target=0.2, strict=True), logger=logger, log_every_n_steps=4, max_epochs=2)
    run.fit(Module(lr=10.0), data())
    folder = tmp_path / "tb"
    assert set(scalars(folder, "train/loss")) == {3, 7, 11}
    for metric in METRICS:
        assert set(scalars(folder, metric.key())) == {3, 7, 11}, metric  # the axis of self.log, gap for gap
    breaches = scalars(folder, "stepguard/r_breach")
    assert len(breaches) > 3 and all(r > 0.2 for r in breaches.values())
    every = {"tensors": 0}  # TensorBoard shows a sample of 10 texts unless told otherwise; the file has all
    events = EventAccumulator(str(folder), size_guidance=every).Reload().Tensors("stepguard/events/text_summary")
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events]
    assert texts[0][0] == 0 and "r is that of cross_entropy of Module, measured by forward mode" in texts[0][1]
    assert {step for step, _ in texts[1:]} == set(breaches)
    first = texts[1][1]
    assert "r = " in first and "tau = " in first and "rho = " in first and "scaled by" in first


def test_other_loggers_and_none(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv", version=""), TensorBoardLogger(tmp_path, name="tb", version="")]
    loggers[0].__class__ = type("Dashed", (CSVLogger,), {"group_separator": "-"})
    trainer(tmp_path, StepGuard(), logger=loggers, log_every_n_steps=2).fit(Module(lr=10.0), data())
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"stepguard-r", "stepguard-lr_applied", "stepguard-r_breach"} <= set(header)
    trainer(tmp_path, StepGuard()).fit(Module(), data())


def test_our_metrics_can_be_watched(tmp_path):
    guard = StepGuard(action="observe")
    stop = EarlyStopping("stepguard/r", patience=0, stopping_threshold=1e-9, mode="min", check_on_train_epoch_end=True)
    keep = ModelCheckpoint(tmp_path, "{stepguard/r:.3f}", monitor="stepguard/r", save_top_k=1)
    run = trainer(tmp_path, guard, stop, keep, max_epochs=3, enable_checkpointing=True)
    run.fit(Module(), data())
    assert run.callback_metrics["stepguard/r"].item() == pytest.approx(guard.last.r)
    assert keep.best_model_score is not None and list(tmp_path.rglob("*.ckpt"))


def test_accumulation_counts_optimizer_steps(tmp_path):
    guard = StepGuard(strict=True)
    seen = heard(guard)
    trainer(tmp_path, guard, accumulate_grad_batches=4).fit(Module(), data(batches=6))
    assert [r.step for r in seen.readings] == [0, 1]  # four micro-batches, then the two that were left


def test_bf16_mixed(tmp_path):
    module, moves = Module(lr=10.0), Moves()
    trainer(tmp_path, StepGuard(target=0.2, strict=True), moves, precision="bf16-mixed").fit(module, data())
    assert max(moves.r) == pytest.approx(0.2, rel=1e-4)  # parameters and slopes are float32


def test_gradient_clipping_comes_first(tmp_path):
    guard = StepGuard(action="observe", strict=True)
    module = Module(lr=1.0)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=1.0)
    trainer(tmp_path, guard, gradient_clip_val=0.01).fit(module, data())
    assert guard.last.tau == pytest.approx(0.01, rel=1e-3)


def test_resume_equals_uninterrupted(tmp_path):
    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        module, guard = Module(lr=10.0), StepGuard(target=0.2, strict=True)
        run = trainer(tmp_path, guard, max_epochs=epochs)
        run.fit(module, data(), ckpt_path=checkpoint)
        return run, module, guard

    _, whole, guard = fit(4)
    first, _, _ = fit(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second, resumed, again = fit(4, tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert again.state_dict()["step"] == 24
    assert again.last._replace(cost_share=None) == guard.last._replace(cost_share=None)


def test_checkpoints_with_and_without_stepguard_are_exchangeable(tmp_path):
    for first, second in (([StepGuard()], []), ([], [StepGuard()])):
        run = trainer(tmp_path, *first)
        run.fit(Module(), data())
        run.save_checkpoint(tmp_path / "any.ckpt")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
            trainer(tmp_path, *second, max_epochs=2).fit(Module(), data(), ckpt_path=tmp_path / "any.ckpt")


class CallsSubmodule(Module):
    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])


def test_a_submodule_that_returns_the_logits(tmp_path):
    moves = Moves()
    trainer(tmp_path, StepGuard(target=0.2, module="model", strict=True), moves).fit(CallsSubmodule(lr=10.0), data())
    assert max(moves.r) == pytest.approx(0.2, rel=1e-4)


def test_a_submodule_that_does_not_exist(tmp_path):
    with pytest.raises(MisconfigurationException, match="no such submodule; its children are model"):
        trainer(tmp_path, StepGuard(module="net")).fit(Module(), data())


def test_a_loss_that_is_no_softmax(tmp_path):
    module = Module(loss=lambda z, y: F.mse_loss(z, F.one_hot(y, 5).float()))
    with pytest.warns(UserWarning, match="No softmax"):
        trainer(tmp_path, StepGuard()).fit(module, data())


@pytest.mark.parametrize("setting", [{"target": math.nan}, {"action": "clip"}, {"cadence": -1}, {"quantile": 0}])
def test_bad_settings_fail_when_written_down(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        StepGuard(**setting)


class TwoOptimizers(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.parameters(), 0.1)]


def test_an_optimizer_of_another_model(tmp_path):
    module = Module()
    module.configure_optimizers = lambda: torch.optim.SGD(mlp().parameters(), 0.1)
    with pytest.raises(MisconfigurationException, match="not parameters of this Module"):
        trainer(tmp_path, StepGuard()).fit(module, data())


def test_a_run_that_crashes_leaves_no_hook(tmp_path):
    module = Module()

    def broken(batch, batch_idx):
        raise KeyError("user's own bug")

    module.training_step = broken
    with pytest.raises(KeyError, match="user's own bug"):
        trainer(tmp_path, StepGuard()).fit(module, data())
    assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("log_every, logged", [(1, [*range(10), 73]), (10, [9, 73]), (50, [73]), (0, [])])
def test_readings_that_are_far_apart_are_logged_when_they_come(log_every, logged, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    run = trainer(tmp_path, StepGuard(strict=True), logger=logger, log_every_n_steps=log_every, max_epochs=1)
    run.fit(Module(lr=1e-4), data(batches=80))
    assert list(scalars(tmp_path / "tb", "stepguard/r")) == logged
