"""The monitor in the Trainer of Hugging Face: a thin shell around what tests/guard/test_collapse_monitor.py holds."""

import json

import pytest
import torch
import torch.nn.functional as F
from toy_trainers import assert_bits, causal_lm, classifier, everything, hooks_of, logged, tensorboard, trainer
from transformers import Trainer

import stepguard
from stepguard.callbacks.transformers import PerpGrad, SoftmaxCollapseMonitor, StepGuard
from stepguard.records import COLLAPSE_METRICS

collapses = pytest.mark.filterwarnings("ignore:stepguard. step .*softmax collapse is near")


class Growing(Trainer):
    """Logits that grow at every step, by themselves."""

    per_step = 3.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        time = self.per_step * (1 + self.state.global_step)
        return F.cross_entropy(1e-6 * model(**inputs).logits + F.one_hot(labels, 3) * time, labels)


class Slowly(Growing):
    per_step = 1.0


def test_readings_are_those_of_a_loop_with_the_same_steps(tmp_path):
    run = trainer(tmp_path, classifier, SoftmaxCollapseMonitor(cadence=1, strict=True), optim="sgd", max_grad_norm=0)
    twin = classifier()
    twin.load_state_dict(run.model.state_dict())
    run.train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 6)
    found = []
    with stepguard.monitor_collapse(twin, optimizer, cadence=1, strict=True) as monitor:
        for batch in run.data_collator.batches:
            optimizer.zero_grad()
            twin(**batch).loss.backward()
            optimizer.step()
            schedule.step()
            found.append(monitor.last.headroom_nats)
    assert list(logged(run, "softmax/headroom_nats").values()) == pytest.approx(found, rel=1e-5)


@collapses
def test_tensorboard_gets_readings_and_events(tmp_path):
    monitor = SoftmaxCollapseMonitor(cadence=1, strict=True, per_layer=True)
    settings = {"report_to": "tensorboard", "logging_steps": 4, "num_train_epochs": 2}
    run = trainer(tmp_path, classifier, monitor, kind=Growing, **settings)
    run.train()
    events = tensorboard(tmp_path)
    assert {f"train/{m.key()}" for m in COLLAPSE_METRICS} <= set(events.Tags()["scalars"])
    assert "train/softmax/nlm_alignment/classifier.weight" in events.Tags()["scalars"]
    told = logged(run, "stepguard/events")
    assert ["is near" in text or "has collapsed" in text for text in told.values()] == [True, True]
    steps = [e.step for e in events.Scalars("train/softmax/collapse")]
    assert set(steps) == {4, 8, 12} | set(told)


@collapses
def test_stop_ends_the_training_with_a_reason(tmp_path, caplog):
    run = trainer(tmp_path, classifier, SoftmaxCollapseMonitor(on_warning="stop", cadence=1), kind=Growing)
    run.train()
    assert run.state.global_step < 6
    assert "SoftmaxCollapseMonitor stops the training. step" in caplog.text and "is near" in caplog.text


@collapses
@pytest.mark.parametrize("cure", [None, "perp_grad"])
def test_the_cure_changes_gradients_from_the_warning_on(cure, tmp_path):
    class Both(Growing):
        def compute_loss(self, model, inputs, **kwargs):
            return super().compute_loss(model, inputs) + model.classifier.weight.square().sum()

    monitor = SoftmaxCollapseMonitor(on_warning=cure, cadence=1)
    settings = {"optim": "sgd", "learning_rate": 0.01, "lr_scheduler_type": "constant", "num_train_epochs": 2}
    run = trainer(tmp_path, classifier, monitor, kind=Both, max_grad_norm=0, **settings)
    before = run.model.classifier.weight.norm().item()
    run.train()
    # its only gradient is along itself, so with the cure, from step 4 on, it stops to shrink
    shrunk = run.model.classifier.weight.norm().item() / before
    assert monitor.last.curing == (cure is not None)
    assert shrunk == pytest.approx(0.98**12 if cure is None else 0.98**4, rel=1e-3)


@collapses
def test_resumed_equals_uninterrupted(tmp_path):
    def train(checkpoint=None):
        monitor = SoftmaxCollapseMonitor(on_warning="perp_grad", cadence=2)
        settings = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 17}
        run = trainer(tmp_path, classifier, monitor, kind=Slowly, **settings)
        run.train(resume_from_checkpoint=checkpoint)
        return everything(run), monitor

    want, whole = train()
    got, again = train(str(tmp_path / "checkpoint-17"))
    assert_bits(got, want)
    assert again.last._replace(cost_share=None) == whole.last._replace(cost_share=None) and again.last.curing
    states = [json.loads(json.dumps(m.state()["attributes"]["saved"])) for m in (again, whole)]
    assert states[0]["level"] == states[1]["level"] != "calm" and states[0]["trend"] == states[1]["trend"]


def test_watching_is_invisible(tmp_path):
    results = []
    for callbacks in ([], [SoftmaxCollapseMonitor(cadence=2, per_layer=True, strict=True)]):
        run = trainer(tmp_path, causal_lm, *callbacks, dropout=0.2, label_smoothing_factor=0.1)
        run.train()
        results.append(everything(run))
    assert_bits(*results)


def test_beside_the_other_callbacks(tmp_path):
    guard, monitor = StepGuard(strict=True), SoftmaxCollapseMonitor(cadence=1, strict=True)
    run = trainer(tmp_path, causal_lm, guard, monitor, PerpGrad(), gradient_accumulation_steps=2, bf16=True)
    run.train()
    assert guard.last.step == monitor.last.step == 2
    assert monitor.last.samples == 2 * 4 * 5 and monitor.last.dtype == "float32"
    assert list(logged(run, "stepguard/r")) == list(logged(run, "softmax/headroom_nats")) == [1, 2, 3]
    assert not hooks_of(run)


@pytest.mark.parametrize("setting", [{"on_warning": "clip"}, {"cadence": 0}, {"horizon": -1}, {"headroom": 0}])
def test_bad_settings_fail_when_written_down(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        SoftmaxCollapseMonitor(**setting)
