"""Lightning under its other name: the same callbacks do the same with pytorch_lightning's own classes."""

import importlib
import subprocess
import sys
import warnings
from types import SimpleNamespace

import lightning.fabric.utilities.exceptions
import lightning.pytorch
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from test_lightning import data
from test_lightning import pytestmark as pytestmark

from stepguard.callbacks import PerpGrad, SoftmaxCollapseMonitor, StepGuard, SuggestLR

with warnings.catch_warnings():  # of packages that it imports, at each import
    warnings.simplefilter("ignore")
    pytorch_lightning = pytest.importorskip("pytorch_lightning")
    exceptions = importlib.import_module("pytorch_lightning.utilities.exceptions")

NAMES = {
    "lightning": SimpleNamespace(
        package=lightning.pytorch, Misconfiguration=lightning.fabric.utilities.exceptions.MisconfigurationException
    ),
    "pytorch_lightning": SimpleNamespace(
        package=pytorch_lightning, Misconfiguration=exceptions.MisconfigurationException
    ),
}


@pytest.fixture(params=NAMES)
def named(request):
    return NAMES[request.param]


def module_of(package, lr=0.1, optimizers=1):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.automatic_optimization = mlp(), optimizers == 1

        def forward(self, x):
            logits = self.model(x)
            self.log("forwards", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return logits

        def training_step(self, batch, index):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            if optimizers > 1:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()
                    optimizer.zero_grad()
            return loss

        def configure_optimizers(self):
            parts = [self.model[0], self.model[3]] if optimizers == 2 else [self]
            return [torch.optim.SGD(part.parameters(), lr) for part in parts]

    torch.manual_seed(0)
    return Module()


def fit(named, module, *callbacks, checkpoint=None, **settings):
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    defaults |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = named.package.Trainer(callbacks=list(callbacks), **{**defaults, **settings})
    trainer.fit(module, data(), ckpt_path=checkpoint)
    return trainer


def test_all_callbacks_are_callbacks_of_both():
    for callback in (StepGuard, SoftmaxCollapseMonitor, PerpGrad, SuggestLR):
        assert issubclass(callback, (lightning.pytorch.Callback, pytorch_lightning.Callback))
        assert issubclass(callback, pytorch_lightning.Callback)


def test_the_two_names_give_the_same_run(tmp_path):
    seen = []
    for named in NAMES.values():
        module, guard, monitor = module_of(named.package, lr=10.0), StepGuard(target=0.2), SoftmaxCollapseMonitor()
        trainer = fit(named, module, guard, monitor, PerpGrad(), max_epochs=2, accumulate_grad_batches=2)
        assert guard.guards[0].step == 6 and 0 < guard.last.scale < 1
        metrics = {k: v for k, v in trainer.callback_metrics.items() if "cost_share" not in k}
        assert {"stepguard/r", "softmax/collapse", "forwards"} <= set(metrics)
        seen.append([module.state_dict(), metrics])
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_what_forward_logs_is_logged_once(named):
    guarded = fit(named, module_of(named.package), StepGuard(cadence="every", strict=True))
    assert guarded.callback_metrics["forwards"] == 6
    assert fit(named, module_of(named.package), SuggestLR(update=True)).callback_metrics["forwards"] == 6


def test_loggers_stopping_and_checkpoints_of_that_name(named, tmp_path):
    callbacks, loggers = named.package.callbacks, named.package.loggers
    stop = callbacks.EarlyStopping("stepguard/r", stopping_threshold=1e9, check_on_train_epoch_end=True)
    keep = callbacks.ModelCheckpoint(tmp_path, "kept", monitor="stepguard/r")
    logger = loggers.CSVLogger(tmp_path, "csv", "")
    settings = {"logger": logger, "enable_checkpointing": True, "max_epochs": 3, "log_every_n_steps": 2}
    trainer = fit(named, module_of(named.package), StepGuard(), stop, keep, **settings)
    assert trainer.current_epoch == 1 and (tmp_path / "kept.ckpt").exists()
    assert "stepguard/r" in (tmp_path / "csv" / "metrics.csv").read_text()
    guard = StepGuard()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # of what kept it
        fit(named, module_of(named.package), guard, max_epochs=2, checkpoint=tmp_path / "kept.ckpt")
    assert guard.guards[0].step == 12


def test_several_optimizers_under_that_name(named):
    trainer = fit(named, module_of(named.package, optimizers=2), StepGuard(strict=True))
    assert {"stepguard/r/0", "stepguard/r/1"} <= set(trainer.callback_metrics)


MISTAKES = {
    "an optimizer that is not there": (StepGuard(optimizer=3), "configured 1"),
    "a submodule that is not there": (StepGuard(module="net"), "no such submodule"),
    "a monitor of an optimizer that is not there": (SoftmaxCollapseMonitor(optimizer=1), "configured 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_by_the_exception_of_that_name(mistake, named):
    callback, message = MISTAKES[mistake]
    with pytest.raises(named.Misconfiguration, match=message):
        fit(named, module_of(named.package), callback)


def test_the_other_name_is_only_used_by_who_uses_it():
    code = """
        import sys
        from stepguard.callbacks import PerpGrad, StepGuard
        assert "pytorch_lightning" not in sys.modules and "lightning_fabric" not in sys.modules
        import pytorch_lightning
        from stepguard.callbacks import StepGuard as Again
        assert Again is StepGuard and issubclass(StepGuard, pytorch_lightning.Callback)
        assert issubclass(PerpGrad, pytorch_lightning.Callback)
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
