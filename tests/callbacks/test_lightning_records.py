"""Records of Lightning runs: in which folder, from which rank, on which axis, and that nothing ends a fit."""

import json
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from test_lightning import Module, data, scalars, trainer
from test_lightning import pytestmark as pytestmark
from test_lightning_optimizers import GAN

from stepguard import attach
from stepguard.callbacks import SoftmaxCollapseMonitor, StepGuard
from stepguard.records import read_runs


class Elsewhere(Logger):
    """A logger of a service, which keeps checkpoints here but has no log_dir."""

    def __init__(self, save_dir=None):
        super().__init__()
        self._save_dir = save_dir

    name, version = "project", "a1b2"

    @property
    def save_dir(self):
        return self._save_dir

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, *args, **kwargs):
        pass


# Which loggers a trainer has, and the folder in which the records are.
FOLDERS = {
    "TensorBoard": (lambda at: TensorBoardLogger(at, name="tb", version=""), "tb"),
    "CSV": (lambda at: CSVLogger(at, name="csv"), "csv/version_0"),
    "TensorBoard behind CSV": (lambda at: [CSVLogger(at), TensorBoardLogger(at, name="tb", version="")], "tb"),
    "one that has only a place for checkpoints": (lambda at: Elsewhere(at), "project/a1b2"),
    "one without a folder, before one with": (lambda at: [Elsewhere(), CSVLogger(at, name="csv")], "csv/version_0"),
    "one that writes to a bucket": (lambda at: Elsewhere("s3://bucket"), None),
    "one without a folder": (lambda at: Elsewhere(), None),
    "no logger": (lambda at: False, None),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_records_lie_beside_what_the_logger_writes(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, where = FOLDERS[case]
    callbacks = [StepGuard(target=0.2, cadence="every", strict=True), SoftmaxCollapseMonitor(cadence=2, strict=True)]
    trainer(tmp_path, *callbacks, logger=make(tmp_path), log_every_n_steps=6).fit(Module(lr=10.0), data())
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ([where] if where else [])
    assert not list(tmp_path.glob("s3:*"))
    for run in runs:
        assert [r.step for r in run.readings] == list(range(6)) and [c.step for c in run.collapses] == [0, 2, 4]
        assert {e.step for e in run.events if e.kind == "clamp"} == {r.step for r in run.readings if r.breach} != set()
        assert [s["writes"] for s in run.starts] == ["guard", "monitor"] and not run.notices
        assert (run.starts[0]["model"], run.starts[0]["optimizer"]) == ("Module", "SGD")
        assert run.starts[0]["settings"]["target"] == 0.2 and run.starts[0]["groups"][0]["lr"] == 10.0


def test_a_trial_run_leaves_nothing(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, StepGuard(), logger=logger, fast_dev_run=True).fit(Module(), data())
    assert not read_runs(tmp_path)


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    run = trainer(tmp_path, StepGuard(), logger=CSVLogger(tmp_path), log_every_n_steps=6)
    monkeypatch.setattr(type(run), "is_global_zero", False)
    run.fit(Module(), data())
    assert not read_runs(tmp_path)


def fit(folder, *callbacks, epochs=1, ckpt_path=None, module=None, **settings):
    logger = TensorBoardLogger(folder, name="tb", version="")
    run = trainer(folder, *callbacks, logger=logger, max_epochs=epochs, log_every_n_steps=1, **settings)
    run.fit(module or Module(lr=10.0), data(), ckpt_path=ckpt_path)
    return run


def test_a_fit_that_goes_on_appends(tmp_path):
    fit(tmp_path, StepGuard(cadence="every")).save_checkpoint(tmp_path / "kept.ckpt")
    fit(tmp_path, StepGuard(cadence="every"), epochs=2)
    fit(tmp_path, StepGuard(cadence="every"), epochs=2, ckpt_path=tmp_path / "kept.ckpt")
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == list(range(12)) and len(run.starts) == 3
    assert run.logged_steps == {step: step for step in range(12)}


def test_the_axis_is_that_of_the_logger(tmp_path):
    """A guard that comes late counts from 0, the trainer from where it is."""
    fit(tmp_path / "plain").save_checkpoint(tmp_path / "kept.ckpt")
    fit(tmp_path / "guarded", StepGuard(cadence=2), epochs=2, ckpt_path=tmp_path / "kept.ckpt")
    (run,) = read_runs(tmp_path / "guarded")
    assert run.logged_steps == {0: 6, 2: 8, 4: 10}
    shown = scalars(tmp_path / "guarded" / "tb", "stepguard/r")
    assert {run.logged_steps[r.step]: r.r for r in run.readings} == pytest.approx(shown)


def test_a_step_that_a_scaler_skips_is_where_it_was_asked_for(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)  # inf at first, and half of it after each
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    fit(tmp_path, StepGuard(cadence="every"), plugins=plugins)
    (run,) = read_runs(tmp_path)
    skipped = [e.step for e in run.events if e.kind == "skipped"]
    assert skipped and run.logged_steps == {step: step for step in range(6)}


def test_each_optimizer_has_a_file(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version="")
    run = trainer(tmp_path, StepGuard(cadence="every"), logger=logger, log_every_n_steps=1, max_epochs=2)
    run.fit(GAN(), data())
    runs = read_runs(tmp_path)
    assert [run.name for run in runs] == ["tb 0", "tb 1"]
    assert sorted(p.name for p in (tmp_path / "tb").glob("*.jsonl")) == ["stepguard-0.jsonl", "stepguard-1.jsonl"]
    for number, run in enumerate(runs):
        shown = scalars(tmp_path / "tb", f"stepguard/r/{number}")
        assert {run.logged_steps[r.step]: r.r for r in run.readings} == pytest.approx(shown) and len(shown) == 12


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    logger = Elsewhere(tmp_path)
    (tmp_path / "project").write_text("not a folder")
    guard = StepGuard(cadence="every")
    with pytest.warns(UserWarning, match="could not write .*Not a directory") as said:
        trainer(tmp_path, guard, logger=logger, log_every_n_steps=6).fit(Module(), data())
    assert guard.last.step == 5 and len([w for w in said if "could not write" in str(w.message)]) == 1


def test_what_is_refused_leaves_no_file(tmp_path):
    class Guarded(Module):
        def configure_optimizers(self):
            optimizers, schedulers = super().configure_optimizers()
            self.guard = attach(self, optimizers[0])
            return optimizers, schedulers

    module = Guarded()
    with pytest.raises(MisconfigurationException, match="guarded already"):
        fit(tmp_path, StepGuard(), module=module)
    module.guard.detach()
    assert not list(Path(tmp_path).rglob("*.jsonl"))


def test_lines_are_there_before_the_fit_ends(tmp_path):
    class Looks(StepGuard):
        seen = ()

        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            lines = (tmp_path / "tb" / "stepguard.jsonl").read_text().splitlines()
            self.seen = [*self.seen, sum(json.loads(line)["kind"] == "reading" for line in lines)]

    guard = Looks(cadence="every")
    fit(tmp_path, guard)
    assert guard.seen == [1, 2, 3, 4, 5, 6]
