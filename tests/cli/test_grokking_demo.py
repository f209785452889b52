import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cli import demos
from cli.demos import events, scalars, stepguard
from views.frames import room

from stepguard.cli import main, option_help
from stepguard.cli.grokking import race
from stepguard.cli.grokking.options import Plan
from stepguard.cli.grokking.training import Frame, PerpGrad, Run

RUNS = ["AdamW", "AdamW + perpGrad"]
FOLDERS = dict(zip(RUNS, ("AdamW", "AdamW-perpGrad"), strict=True))


def table_rows(text):
    return demos.table_rows(text, RUNS, columns=6)


def in_one_line(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A short demo: exit code, what it printed, its folder."""
    root = tmp_path_factory.mktemp("demo")
    return stepguard("demo", "grokking", "--epochs", 12, "--log-dir", root), root / "run-1"


def test_it_ends_well_with_a_row_for_each_run(short):
    done, _ = short
    assert (done.returncode, done.stderr) == (0, "")
    assert list(table_rows(done.stdout)) == RUNS


def test_without_a_terminal_it_is_readable_text(short):
    done, folder = short
    assert "\x1b" not in done.stdout
    body = [line for line in done.stdout.splitlines() if str(folder) not in line]
    assert max(map(len, body)) <= 80
    assert body[:2] == ["addition modulo 113 from 40% of the pairs, lr 0.01", "seed 42"]
    assert [line.split("loss")[0].split() for line in body[2:4]] == [["epoch", "11", *run.split()] for run in RUNS]
    assert f"stepguard dashboard {folder}" in done.stdout and f"{folder}/grokking.png" in done.stdout
    assert (folder / "grokking.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_agrees_with_the_logs(short):
    done, folder = short
    for run, cells in table_rows(done.stdout).items():
        logged = scalars(folder / FOLDERS[run])
        for tag in ("train/loss", "train/accuracy", "test/accuracy", "softmax/headroom_nats", "softmax/collapse"):
            assert list(logged[tag]) == list(range(12))
        assert cells[:2] == [f"{logged['train/accuracy'][11]:.1f}", f"{logged['test/accuracy'][11]:.1f}"]
        assert cells[2:4] == ["never", "never"] and max(logged["test/accuracy"].values()) < 50
        assert cells[4] == f"{100 * max(logged['softmax/collapse'].values()):.1f}%"
        assert cells[5] == f"{min(logged['softmax/headroom_nats'].values()):.2f}"


def test_both_runs_begin_alike_and_part_at_the_first_step(short):
    adamw, perp_grad = (scalars(short[1] / folder)["train/loss"] for folder in FOLDERS.values())
    assert adamw[0] == perp_grad[0] and adamw[1] != perp_grad[1]
    assert adamw[11] < perp_grad[11] < adamw[0]


# Trained by script: what is printed and logged can then be told by hand.

SCRIPT = {
    "AdamW": [(60.0, 1.0, 8.0, 0.0), (99.95, 2.0, 0.5, 0.0), (100.0, 0.5, -1.25, 0.25)],
    "AdamW + perpGrad": [(50.0, 49.0, 9.0, 0.0), (80.0, 50.0, 7.5, 0.0), (99.0, 99.06, 7.75, 0.0)],
}
ROWS = {
    "AdamW": ["100.0", "0.5", "never", "never", "25.0%", "-1.25"],
    "AdamW + perpGrad": ["99.0", "99.1", "1", "2", "0.0%", "7.50"],
}


@pytest.fixture
def scripted(monkeypatch):
    """Instead of training: the runs asked for by name, and the epochs at which the user is to interrupt them."""
    asked, stop_at = {}, {}

    def train(run):
        name = RUNS[run.perp_grad is not None]
        asked[name] = run._replace(recorders=())
        for epoch, (seen, unseen, headroom, collapse) in enumerate(SCRIPT[name]):
            if stop_at.get(name) == epoch:
                raise KeyboardInterrupt
            yield Frame(epoch, 1.0 / (epoch + 1), seen, unseen, room(epoch, headroom, collapse), ())

    monkeypatch.setattr(race, "train", train)
    return SimpleNamespace(asked=asked, stop_at=stop_at)


def demo(folder, *options):
    return main(["demo", "grokking", "--epochs", "3", "--log-dir", str(folder), *options])


def test_table_and_logs_tell_what_happened(tmp_path, capsys, scripted):
    assert demo(tmp_path) == 0
    out = capsys.readouterr().out
    assert table_rows(out) == ROWS and "Stopped" not in out
    assert [in_one_line(line) for line in out.splitlines() if "!" in line] == [
        "! AdamW fitted, epoch 1: train 100.0%",
        "! AdamW + perpGrad generalised, epoch 2: test 99.1%",
    ]
    logged = {run: scalars(tmp_path / "run-1" / folder) for run, folder in FOLDERS.items()}
    for run, frames in SCRIPT.items():
        assert logged[run]["train/accuracy"] == pytest.approx({i: frame[0] for i, frame in enumerate(frames)})
        assert logged[run]["test/accuracy"] == pytest.approx({i: frame[1] for i, frame in enumerate(frames)})
        assert logged[run]["train/loss"] == pytest.approx({0: 1.0, 1: 1 / 2, 2: 1 / 3})
    assert events(tmp_path / "run-1" / "AdamW") == {1: "epoch 1: train 100.0%"}
    assert events(tmp_path / "run-1" / "AdamW-perpGrad") == {2: "epoch 2: test 99.1%"}


def test_options_reach_the_runs(tmp_path, capsys, scripted):
    options = "--lr 0.5 --seed 7 --over all --no-restore-norm --loss-dtype float16"
    assert demo(tmp_path, *options.split()) == 0
    plain = Run(113, 7, 0.5, 3, loss_dtype=torch.float16)
    perp_grad = plain._replace(perp_grad=PerpGrad("all", restore_norm=False))
    assert scripted.asked == {"AdamW": plain, "AdamW + perpGrad": perp_grad}
    out = capsys.readouterr().out
    assert "addition modulo 113 from 40% of the pairs, lr 0.5, float16 loss" in out and "seed 7" in out


def test_what_it_does_unless_told_otherwise(tmp_path, capsys, scripted):
    assert main(["demo", "grokking", "--log-dir", str(tmp_path)]) == 0
    plain = Run(113, 42, 0.01, 160, loss_dtype=torch.float32)
    perp_grad = plain._replace(perp_grad=PerpGrad("tensor", restore_norm=True))
    assert scripted.asked == {"AdamW": plain, "AdamW + perpGrad": perp_grad}


@pytest.mark.parametrize("stopped", RUNS)
def test_interrupted_it_shows_what_there_is(tmp_path, capsys, scripted, stopped):
    scripted.stop_at[stopped] = 2
    assert demo(tmp_path) == 130
    out = capsys.readouterr().out
    assert "Stopped after 2 of 3 epochs." in out
    assert table_rows(out) == {
        "AdamW": ["100.0", "2.0", "never", "never", "0.0%", "0.50"],
        "AdamW + perpGrad": ["80.0", "50.0", "1", "never", "0.0%", "7.50"],
    }
    assert (tmp_path / "run-1" / "grokking.png").read_bytes().startswith(b"\x89PNG")
    assert list(scalars(tmp_path / "run-1" / "AdamW")["train/loss"]) == [0, 1]


@pytest.mark.parametrize("stopped", RUNS)
def test_interrupted_at_once(tmp_path, capsys, scripted, stopped):
    scripted.stop_at[stopped] = 0
    assert demo(tmp_path) == 130
    assert "Stopped before the end of the first epoch." in capsys.readouterr().out
    assert not (tmp_path / "run-1" / "grokking.png").exists()


def test_interrupted_from_the_keyboard_it_ends_in_order(tmp_path):
    # What a shell starts in the background ignores the signal, and so would we if that is where the tests run.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from stepguard.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "demo", "grokking", "--epochs", "10000", "--log-dir", str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": demos.environment()}
    with subprocess.Popen(command, **pipes) as process:
        try:
            begun = [process.stdout.readline() for _ in range(4)]
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert begun[2].startswith("epoch   24  AdamW ")
    assert (process.returncode, err) == (130, "")
    assert list(table_rows(rest)) == RUNS and re.search(r"Stopped after \d+ of 10000 epochs\.", rest)


def test_a_second_demo_leaves_what_is_there_alone(tmp_path, capsys, scripted):
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "mine.txt").write_text("keep me")
    assert demo(tmp_path) == 0
    assert [p.name for p in (tmp_path / "run-1").iterdir()] == ["mine.txt"]
    assert (tmp_path / "run-2" / "grokking.png").exists()


# Trained for real again, at the edges of what may be asked for.


def test_a_collapse_is_shown_as_one(tmp_path, capsys, recwarn):
    # A table of sums this small is known by heart at once.
    plan = Plan(60, 0.03, 42, "tensor", True, "float16", tmp_path, modulus=11)
    assert race.race(plan, tmp_path) == 0
    out, err = capsys.readouterr()
    assert err == "" and not recwarn.list  # the warning stands among the events
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    assert re.search(r"! AdamW +onset, epoch \d+: \d+\.\d% collapsed", out)
    collapsed, headroom = table_rows(out)["AdamW"][4:]
    assert collapsed == "100.0%" and float(headroom) < -10
    assert any("the softmax has collapsed" in text for text in events(tmp_path / "AdamW").values())


def test_a_run_that_breaks_ends_with_a_table(tmp_path, capsys):
    assert demo(tmp_path, "--lr", "1e37", "--epochs", "3", "--seed", str(2**63 - 1)) == 0
    out = capsys.readouterr().out
    assert list(table_rows(out)) == RUNS and "unmeasured, step 1 was not looked at for softmax collapse" in out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--epochs", "0"], r"--epochs: must be at least 1, got 0"),
        (["--epochs", "2.5"], r"--epochs: must be a whole number, got '2.5'"),
        (["--lr", "0"], r"--lr: must be positive and finite, got 0"),
        (["--lr", "nan"], r"--lr: must be positive and finite, got nan"),
        (["--lr", "fast"], r"--lr: must be a number, got 'fast'"),
        (["--lr", "1e38"], r"--lr: must be at most 1e\+37, got 1e38"),
        (["--seed", "-1"], r"--seed: must not be negative, got -1"),
        (["--seed", str(2**63)], r"--seed: must be below 2\*\*63, got 9223372036854775808"),
        (["--over", "both"], r"--over: invalid choice: 'both' \(choose from '?tensor'?, '?all'?\)"),
        (["--loss-dtype", "int8"], r"--loss-dtype: invalid choice: 'int8'"),
        (["--steps", "3"], r"unrecognized arguments: --steps 3"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as refused:
        demo(tmp_path / "new", *options)
    assert refused.value.code == 2
    assert re.search(message, in_one_line(capsys.readouterr().err))
    assert not (tmp_path / "new").exists()


def test_a_log_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        demo(tmp_path / "file")
    assert f"no folder can be made in {tmp_path / 'file'} (File exists)" in capsys.readouterr().err


def test_it_needs_matplotlib_but_no_scikit_learn(tmp_path, capsys, monkeypatch, scripted):
    monkeypatch.setattr(option_help, "find_spec", lambda name: None if name == "sklearn" else object())
    assert demo(tmp_path) == 0
    monkeypatch.setattr(option_help, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(SystemExit, match="2"):
        demo(tmp_path)
    assert "the demo needs matplotlib: pip install 'stepguard[demo]'" in in_one_line(capsys.readouterr().err)


def test_help_teaches():
    done = stepguard("demo", "grokking", "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    help_in_one_line = in_one_line(done.stdout)
    for part in ("examples:", "learns addition modulo 113", "perpGrad takes that scaling out", "runs/demo"):
        assert part in help_in_one_line
    for part in ("default: 160", "default: 0.01", "default: 42", "default: tensor", "default: float32"):
        assert part in help_in_one_line
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_examples_in_the_help_can_be_run(tmp_path, capsys, scripted):
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "grokking", "--help"])
    examples = re.findall(r"^  stepguard (demo grokking(?: --?\S+(?: [a-z0-9.]+\b)?)*)", capsys.readouterr().out, re.M)
    assert len(examples) == 3
    for example in examples:
        assert main([*example.split(), "--log-dir", str(tmp_path)]) == 0
