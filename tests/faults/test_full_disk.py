"""Full disks, broken files, killed processes: training goes on, and what is written stays."""

import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fault_run import Run, X, Y, hooks_of, within
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import stepguard
from stepguard.callbacks import StepGuard
from stepguard.records import JsonLines, Memory, read_runs


def steps_in(log):
    """Steps whose r is in a TensorBoard file or folder."""
    read = EventAccumulator(str(log), size_guidance={"scalars": 0})
    read.Reload()
    return [e.step for e in read.Scalars("stepguard/r")]


# The writing thread of TensorBoard dies with its error, and says so itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_that_runs_full_ends_nothing(tmp_path):
    logless = Run({"target": 0.02})
    logless.steps(40)
    logless.detach()
    plain = logless.parameters()

    def work():
        run = Run({"target": 0.02, "log_dir": tmp_path})
        run.steps(5)
        (log,) = tmp_path.glob("events*")
        lines, scalars = run.guard._reporter._recorders[:2]
        scalars._writer.flush()
        kept = log.rename(tmp_path.parent / "kept.tfevents")
        log.symlink_to("/dev/full")  # the writer opens its file by name for every record
        with open("/dev/full", "ab") as full:
            os.dup2(full.fileno(), lines._file.fileno())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run.steps(35)
            run.detach()
        return run, kept, [str(w.message) for w in said if w.category is UserWarning]

    run, kept, said = within(60, work)
    assert sorted(s.split()[1] for s in said) == ["JsonLines", "TensorBoard"]
    assert all("could not write" in s and "No space left" in s for s in said)
    (records,) = read_runs(tmp_path)
    assert [r.step for r in records.readings] == [0, 1, 2, 3, 4] and not records.notices
    assert run.measured() == list(range(40)) and steps_in(kept) == [0, 1, 2, 3, 4]
    assert all(map(torch.equal, plain, run.parameters())) and not hooks_of(run)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    run = Run()
    (tmp_path / "file").write_text("not a folder")
    for watch in (stepguard.attach, stepguard.monitor_collapse):
        with pytest.raises(OSError):
            watch(run.model, run.optimizer, log_dir=tmp_path / "file" / "log")
    assert not hooks_of(run)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_disk_that_is_full_from_the_first_is_refused_at_once(tmp_path):
    run = Run()
    (tmp_path / "stepguard.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        stepguard.attach(run.model, run.optimizer, log_dir=tmp_path)
    assert not hooks_of(run) and not list(tmp_path.glob("events*"))


def test_of_a_line_that_came_half_onto_the_disk_the_next_is_not_spoilt(tmp_path):
    run = Run({"target": 1e6, "recorders": [JsonLines(tmp_path)]}, monitored=False)  # a line a step
    run.steps(5)
    lines, before = tmp_path / "stepguard.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (lines.stat().st_size + 100, before[1]))
        with pytest.warns(UserWarning, match="could not write"):
            run.steps(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.steps(5)
    run.detach()
    (records,) = read_runs(tmp_path)
    assert [r.step for r in records.readings] == [*range(5), *range(6, 11)] and len(records.notices) == 1


# What may lie in the folder from an earlier run.
BROKEN = {
    "a file of noise": os.urandom(300),
    "a record cut off": b"\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f",
    "an empty file": b"",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_record_file_from_before_is_left_alone(content, tmp_path):
    old = tmp_path / "events.out.tfevents.1000000000.there.1.0"
    old.write_bytes(BROKEN[content])
    run = Run({"target": 0.02, "log_dir": tmp_path})
    run.steps(4)
    run.detach()
    (new,) = set(tmp_path.glob("events*")) - {old}
    assert steps_in(new) == [0, 1, 2, 3] and old.read_bytes() == BROKEN[content]


class Broken(Memory):
    """Fails at whatever it is told."""

    def reading(self, reading):
        raise OSError(28, "No space left on device")

    event = reading

    def close(self):
        raise OSError(28, "No space left on device")


def test_a_recorder_that_fails_at_everything_costs_the_others_nothing():
    run = Run({"target": 0.02, "recorders": [Broken(), memory := Memory(), Broken()]}, monitored=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run.steps(4)
        run.detach()
    assert [r.step for r in memory.readings] == [0, 1, 2, 3]
    assert [e.kind for e in memory.events if e.kind != "culprit"][1:] == ["clamp"] * 4
    assert len(said) == 3  # one could not write, as the other for the same reason, and two could not be closed


KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
from fault_run import Run
run = Run({"target": 0.02, "log_dir": sys.argv[1], "recorders": []}, monitored=False)
run.steps(30)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_of_a_killed_process_all_is_there_but_what_waited_to_be_written(tmp_path):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *paths], timeout=120, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    found = steps_in(tmp_path)
    # TensorBoard's queue holds ten records at most, and each step here makes two: a reading and an event.
    assert found == list(range(len(found))) and len(found) >= 25
    (run,) = read_runs(tmp_path)  # which waits for nothing
    assert [r.step for r in run.readings] == list(range(30)) and not run.notices


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(12, 5)

    def training_step(self, batch, index):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class FullLogger(CSVLogger):
    """A logger whose disk is full."""

    def log_metrics(self, metrics, step=None):
        raise OSError(28, "No space left on device")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_a_lightning_logger_that_cannot_write_ends_nothing(tmp_path):
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=1)
    full, sound, guard = FullLogger(tmp_path / "full"), CSVLogger(tmp_path / "sound"), StepGuard(target=1e-3)
    trainer = Trainer(
        max_epochs=1,
        callbacks=[guard],
        logger=[full, sound],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    with pytest.warns(UserWarning, match="FullLogger could not write .*No space left") as said:
        trainer.fit(Module(), data)
    assert len([w for w in said if "could not write" in str(w.message)]) == 1
    assert trainer.global_step == 6 and guard.last.step == 5
    assert (Path(sound.log_dir) / "metrics.csv").read_text().count("\n") == 7
