"""Records of the Trainer of Hugging Face: in which folder, from which process, on which axis."""

import os

import pytest
from toy_trainers import causal_lm, data, logged, tensorboard, trainer
from transformers import TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback

from stepguard.callbacks.transformers import SoftmaxCollapseMonitor, StepGuard
from stepguard.records import read_runs


def callbacks():
    return [StepGuard(target=0.05, cadence="every", strict=True), SoftmaxCollapseMonitor(cadence=2, strict=True)]


def test_without_tensorboard_they_are_where_the_trainer_saves(tmp_path):
    run = trainer(tmp_path, causal_lm, *callbacks(), logging_steps=4)
    run.train()
    (records,) = read_runs(tmp_path)
    assert records.path == tmp_path / "stepguard.jsonl" and not records.notices
    assert [r.step for r in records.readings] == list(range(6)) and [c.step for c in records.collapses] == [0, 2, 4]
    assert records.logged_steps == {step: step + 1 for step in range(6)}
    breaches = {records.logged_steps[r.step]: r.r for r in records.readings if r.breach}
    assert breaches == logged(run, "stepguard/r_breach") and len(breaches) > 3
    start = {s["writes"]: s for s in records.starts}
    assert set(start) == {"guard", "monitor"}
    assert start["guard"]["model"] == "GPT2LMHeadModel" and start["guard"]["settings"]["target"] == 0.05


ADDED = {
    "given to the trainer": lambda run, each: None,
    "added afterwards": lambda run, each: [run.add_callback(callback) for callback in each],
}


@pytest.mark.parametrize("added", ADDED)
def test_they_lie_beside_tensorboards_file(added, tmp_path):
    each = callbacks()
    given = each if added == "given to the trainer" else []
    run = trainer(tmp_path, causal_lm, *given, report_to="tensorboard")
    ADDED[added](run, each)
    run.train()
    (records,) = read_runs(tmp_path)
    assert [path.parent for path in tmp_path.rglob("events.out*")] == [records.path.parent]
    shown = {e.step: e.value for e in tensorboard(tmp_path).Scalars("train/stepguard/r")}
    assert {records.logged_steps[r.step]: r.r for r in records.readings} == pytest.approx(shown) and len(shown) == 6


def test_each_trial_of_a_search_has_its_own(tmp_path):
    """In a second training ours comes before the reporters, which have another folder by then."""
    run = trainer(tmp_path, causal_lm, *callbacks(), report_to="tensorboard")
    run.train()
    (board,) = [c for c in run.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    board.logging_dir = str(tmp_path / "second")
    run.train()
    assert len(read_runs(tmp_path)) == 2
    (second,) = read_runs(tmp_path / "second")
    assert [r.step for r in second.readings] == list(range(6)) and len(second.starts) == 2


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    run = trainer(tmp_path, causal_lm, *callbacks())
    working = TrainerState.__init__

    def second(self, *args, **kwargs):
        working(self, *args, **kwargs)
        self.is_world_process_zero = False

    monkeypatch.setattr(TrainerState, "__init__", second)
    monkeypatch.setattr(type(run), "is_world_process_zero", lambda self: False)
    run.train()
    assert not read_runs(tmp_path)


def test_a_training_that_goes_on_appends(tmp_path):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 7}
    trainer(tmp_path, causal_lm, *callbacks(), **settings).train()
    lines = (tmp_path / "stepguard.jsonl").read_text()
    trainer(tmp_path, causal_lm, *callbacks(), **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert (tmp_path / "stepguard.jsonl").read_text().startswith(lines)
    (records,) = read_runs(tmp_path)
    assert [r.step for r in records.readings] == list(range(12)) and len(records.starts) == 4
    assert records.logged_steps == {step: step + 1 for step in range(12)}
    assert [c.step for c in records.collapses] == list(range(0, 12, 2))


def test_a_monitor_that_joins_a_run_takes_nothing_from_it(tmp_path):
    settings = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 7}
    guard, both = callbacks()[:1], callbacks()
    trainer(tmp_path, causal_lm, *guard, **settings).train()
    lines = tmp_path / "stepguard.jsonl"
    lines.write_text(lines.read_text().replace(f'"pid": {os.getpid()}', '"pid": -1'))
    trainer(tmp_path, causal_lm, *both, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    (records,) = read_runs(tmp_path)
    assert [r.step for r in records.readings] == list(range(12))
    assert [c.step for c in records.collapses] == [0, 2, 4]  # of its own five steps


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "stepguard.jsonl").mkdir()
    guard = StepGuard(cadence="every")
    with pytest.warns(UserWarning, match="could not write .*Is a directory"):
        trainer(tmp_path, causal_lm, guard).train()
    assert guard.last.step == 5


def test_a_callback_is_let_go_of_with_its_file(tmp_path):
    guard = StepGuard(cadence="every")
    run = trainer(tmp_path, causal_lm, guard, given={"train_dataset": data(causal_lm)[:8]})
    run.train()
    assert guard._lines is None and len(read_runs(tmp_path)[0].readings) == 2
