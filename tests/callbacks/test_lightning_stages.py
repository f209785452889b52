"""Whatever a trainer does around optimizer steps: r is right, and all else is as without us, to the bit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from reference import dense_r, parameters_of
from test_lightning import Module, data, trainer
from test_lightning import pytestmark as notices
from torch import nn
from torch.optim import lr_scheduler

from stepguard.callbacks import PerpGrad, SoftmaxCollapseMonitor, StepGuard

# Said by the trainer, of what some of the cases are about.
pytestmark = [
    *notices,
    pytest.mark.filterwarnings("ignore:You requested to overfit"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
]


class Beside(Callback):
    """The r of every step beside its reference: of the move that was made, on all batches since the last one."""

    def __init__(self, guard):
        self.guard, self.r, self.made, self.dtypes, self.batches = guard, [], [], set(), []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches.append(batch[0])
        self.old = parameters_of(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        new = parameters_of(module)
        self.dtypes |= {p.dtype for p in new.values()}
        if any(not torch.equal(new[n], self.old[n]) for n in new):
            self.r.append(self.guard.last.r)
            self.made.append(max(dense_r(Module(), self.old, new, x) for x in self.batches))
            self.batches = []


class Groups(Module):
    def configure_optimizers(self):
        groups = [{"params": self.model[0].parameters(), "lr": 1e-3}, {"params": self.model[3].parameters()}]
        return torch.optim.AdamW(groups, lr=self.lr, weight_decay=0.1)


class ByClosure(Module):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Thawing(Module):
    """The first layer joins in the second epoch, as a parameter group of its own."""

    @property
    def backbone(self):
        return self.model[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.model[3].parameters(), lr=self.lr)


class Plateau(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        config = {
            "scheduler": lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
            "monitor": "train/loss",
        }
        return {"optimizer": optimizer, "lr_scheduler": {**config, "interval": "step"}}


class Cosine(Module):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": lr_scheduler.CosineAnnealingLR(optimizer, 3)}


class Row(NamedTuple):
    module: type[Module] = Module
    trainer: dict[str, Any] = {}
    others: Callable[[], list[Callback]] = list
    steps: int = 18


ROWS = {
    "accumulation": Row(trainer={"accumulate_grad_batches": 4}, steps=6),
    "accumulation by a schedule": Row(others=lambda: [GradientAccumulationScheduler({0: 2, 1: 3})], steps=3 + 2 + 2),
    "clipping by norm": Row(trainer={"gradient_clip_val": 0.1}),
    "clipping by value": Row(trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "accumulation and clipping": Row(trainer={"gradient_clip_val": 0.1, "accumulate_grad_batches": 3}, steps=6),
    "several parameter groups": Row(Groups),
    "LBFGS": Row(ByClosure),
    "a layer that is thawed": Row(Thawing, others=lambda: [BackboneFinetuning(1, verbose=False)]),
    "a schedule by the loss, every step": Row(Plateau),
    "a schedule by the epoch": Row(Cosine),
    "stochastic weight averaging": Row(others=lambda: [StochasticWeightAveraging(0.05, 1)]),
    "a moving average of the weights": Row(others=lambda: [EMAWeightAveraging(decay=0.9)]),
    "perpGrad": Row(others=lambda: [PerpGrad()]),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", ROWS)
def test_r_is_right(name, order, tmp_path):
    row, guard = ROWS[name], StepGuard(action="observe", cadence="every", strict=True)
    beside = Beside(guard)
    callbacks = [*row.others(), guard][::order]
    run = trainer(tmp_path, *callbacks, beside, max_epochs=3, **row.trainer)
    run.fit(row.module(lr=0.05), data())
    assert len(beside.r) == row.steps == guard.guards[0].step
    assert beside.r == pytest.approx(beside.made, rel=1e-3)


class Net(Module):
    """With batch statistics, dropout, a schedule, and all that a trainer may call."""

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 5))

    def validation_step(self, batch, index):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def test_step(self, batch, index):
        with torch.enable_grad():  # nobody's training, although it goes backward
            loss = F.cross_entropy(self(batch[0]), batch[1])
            torch.autograd.grad(loss, list(self.parameters())) if loss.requires_grad else None
        self.log("test/loss", loss.detach())

    def predict_step(self, batch, index):
        return self(batch[0])


def everything(callbacks, module, **settings):
    """All that a user could see of a run, and of what is done with the model afterwards."""
    torch.manual_seed(0)
    module = module()
    run = trainer(None, *callbacks, **{"max_epochs": 2, **settings})
    run.fit(module, data(), data(batches=2))
    seen = [module.state_dict(), [o.state_dict() for o in run.optimizers], torch.get_rng_state(), run.global_step]
    seen += [{k: v for k, v in run.callback_metrics.items() if k.split("/")[0] not in ("stepguard", "softmax")}]
    if not run.barebones:
        seen += [run.validate(module, data(2), verbose=False), run.test(module, data(2), verbose=False)]
        seen += [run.predict(module, data(2))]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not any(p._backward_hooks for p in module.parameters())
    assert not any(o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks for o in run.optimizers)
    assert not any("log" in vars(m) for m in module.modules())
    return seen


def ours():
    return [StepGuard("observe", strict=True), SoftmaxCollapseMonitor(cadence=2, strict=True)]


STAGES = {
    "sanity check, and validation within the epoch": {"num_sanity_val_steps": 2, "val_check_interval": 2},
    "fast_dev_run": {"fast_dev_run": True},
    "overfit_batches": {"overfit_batches": 2},
    "limited batches": {"limit_train_batches": 3, "limit_val_batches": 1},
    "accumulation": {"accumulate_grad_batches": 4},
    "clipping by norm": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "anomaly detection": {"detect_anomaly": True},
    "barebones": {"barebones": True, "logger": None, "enable_checkpointing": None, "enable_progress_bar": None}
    | {"enable_model_summary": None},
}


@pytest.mark.filterwarnings("ignore:.*barebones")
@pytest.mark.parametrize("name", STAGES)
def test_all_stages_are_untouched(name, tmp_path):
    settings = {"default_root_dir": tmp_path, **STAGES[name]}
    torch.testing.assert_close(everything(ours(), Net, **settings), everything([], Net, **settings), rtol=0, atol=0)


OTHERS = {
    "a schedule of accumulation": lambda: [GradientAccumulationScheduler({0: 2, 1: 3})],
    "stochastic weight averaging": lambda: [StochasticWeightAveraging(0.05, 1)],
    "a moving average of the weights": lambda: [EMAWeightAveraging(decay=0.9)],
    "a search for the learning rate": lambda: [LearningRateFinder(num_training_steps=5, early_stop_threshold=None)],
    "a record of the learning rate": lambda: [LearningRateMonitor("step")],
}


@pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_callbacks_do_what_they_do_in_any_order(name, first, tmp_path):
    def run(own):
        others = OTHERS[name]()
        callbacks = [*own, *others] if first else [*others, *own]
        return everything(callbacks, Net, default_root_dir=tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=2)

    torch.testing.assert_close(run(ours()), run([]), rtol=0, atol=0)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_nothing_is_attached_outside_of_training(stage, tmp_path):
    torch.manual_seed(0)
    module, guard = Net(), StepGuard()
    getattr(trainer(tmp_path, guard, SoftmaxCollapseMonitor()), stage)(module, data(2))
    assert guard.last is None and guard.guards == [] and guard.state_dict() == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
