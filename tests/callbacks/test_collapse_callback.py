"""The monitor as a Lightning callback: a thin shell around what tests/guard/test_collapse_monitor.py holds."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_lightning import Module, data, trainer
from test_lightning import pytestmark as pytestmark

from stepguard.callbacks import PerpGrad, SoftmaxCollapseMonitor, StepGuard
from stepguard.records import COLLAPSE_METRICS

collapses = pytest.mark.filterwarnings("ignore:stepguard. step .*softmax collapse is near")


class Growing(Module):
    """Logits that grow at every step, by themselves."""

    def __init__(self, per_step=3.0):
        super().__init__(loss=self.grown)
        self.per_step = per_step
        self.register_buffer("time", torch.zeros(()))

    def grown(self, z, y):
        self.time += self.per_step
        return F.cross_entropy(1e-6 * z + F.one_hot(y, 5) * self.time, y)


def test_readings_reach_the_metrics_and_can_be_watched(tmp_path):
    monitor = SoftmaxCollapseMonitor(cadence=1, strict=True)
    stop = EarlyStopping(
        "softmax/headroom_nats", mode="max", patience=0, stopping_threshold=1.0, check_on_train_epoch_end=True
    )
    run = trainer(tmp_path, monitor, stop, max_epochs=3)
    run.fit(Module(), data())
    assert run.callback_metrics["softmax/headroom_nats"].item() == pytest.approx(monitor.last.headroom_nats)
    assert monitor.last.step == 5 and run.global_step == 6  # stopped after the first epoch


@collapses
def test_tensorboard_gets_readings_and_events(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    monitor = SoftmaxCollapseMonitor(cadence=1, strict=True)
    trainer(tmp_path, monitor, logger=logger, log_every_n_steps=4, max_epochs=2).fit(Growing(), data())
    log = EventAccumulator(str(tmp_path / "tb"), size_guidance={"tensors": 0}).Reload()
    assert {m.key() for m in COLLAPSE_METRICS} <= set(log.Tags()["scalars"])
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in log.Tensors("stepguard/events/text_summary")]
    assert [kind in text for (_, text), kind in zip(texts, ("is near", "has collapsed"), strict=True)] == [True, True]
    steps = [e.step for e in log.Scalars("softmax/collapse")]
    # the first, those at the trainer's cadence, and those with something to tell
    assert {0, 3, 7, 11} | {step for step, _ in texts} == set(steps) and len(steps) < 7


def test_other_loggers_and_none(tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version="")
    trainer(tmp_path, SoftmaxCollapseMonitor(per_layer=True), logger=logger, log_every_n_steps=5).fit(Module(), data())
    header = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"softmax/collapse", "softmax/nlm_alignment", "softmax/nlm_alignment/model.0.weight"} <= set(header)
    trainer(tmp_path, SoftmaxCollapseMonitor()).fit(Module(), data())


@collapses
def test_stop_ends_the_training_with_a_reason(tmp_path, caplog):
    monitor = SoftmaxCollapseMonitor(on_warning="stop", cadence=1)
    run = trainer(tmp_path, monitor, max_epochs=10)
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        run.fit(Growing(), data())
    assert run.global_step < 12
    assert "SoftmaxCollapseMonitor stops the training. step" in caplog.text and "is near" in caplog.text


@collapses
@pytest.mark.parametrize("cure", [None, "perp_grad"])
def test_the_cure_changes_gradients_from_the_warning_on(cure, tmp_path):
    class Both(Growing):
        def training_step(self, batch, index):
            return super().training_step(batch, index) + self.model[0].weight.square().sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    torch.manual_seed(0)
    module, monitor = Both(), SoftmaxCollapseMonitor(on_warning=cure, cadence=1)
    before = module.model[0].weight.norm().item()
    trainer(tmp_path, monitor, max_epochs=2).fit(module, data())
    # its only gradient is along itself, so with the cure, from step 4 on, it stops to shrink
    shrunk = module.model[0].weight.norm().item() / before
    assert monitor.last.curing == (cure is not None)
    assert shrunk == pytest.approx(0.98**12 if cure is None else 0.98**4, rel=1e-3)


@collapses
def test_resume_equals_uninterrupted(tmp_path):
    def fit(epochs, checkpoint=None):
        torch.manual_seed(0)
        module, monitor = Growing(1.0), SoftmaxCollapseMonitor(on_warning="perp_grad", cadence=2)
        run = trainer(tmp_path, monitor, max_epochs=epochs)
        run.fit(module, data(), ckpt_path=checkpoint)
        return run, module, monitor

    _, whole, monitor = fit(4)
    first, _, _ = fit(3)
    first.save_checkpoint(tmp_path / "part.ckpt")
    _, resumed, again = fit(4, tmp_path / "part.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert again.last._replace(cost_share=None) == monitor.last._replace(cost_share=None)
    assert again.last.curing and again.state_dict()["level"] == monitor.state_dict()["level"]


def test_watching_is_invisible(tmp_path):
    results = []
    for callbacks in ([], [SoftmaxCollapseMonitor(cadence=2, per_layer=True, strict=True)]):
        torch.manual_seed(0)
        module = Module(lr=1.0)
        run = trainer(tmp_path, *callbacks, max_epochs=2)
        run.fit(module, data())
        results.append([module.state_dict(), run.optimizers[0].state_dict(), torch.get_rng_state()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_beside_the_other_callbacks(tmp_path):
    guard, monitor = StepGuard(strict=True), SoftmaxCollapseMonitor(cadence=1, strict=True)
    trainer(tmp_path, guard, monitor, PerpGrad(), accumulate_grad_batches=2).fit(Module(), data())
    assert guard.last.step == monitor.last.step == 2
    assert monitor.last.samples == 8


def test_bf16_mixed_takes_its_softmax_in_float32(tmp_path):
    monitor = SoftmaxCollapseMonitor(cadence=1, strict=True)
    trainer(tmp_path, monitor, precision="bf16-mixed").fit(Module(), data())
    assert monitor.last.dtype == "float32"


@pytest.mark.parametrize("setting", [{"on_warning": "clip"}, {"cadence": 0}, {"horizon": -1}, {"headroom": 0}])
def test_bad_settings_fail_when_written_down(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SoftmaxCollapseMonitor(**setting)
