import re

import pytest
from cli import demos
from cli.demos import scalars

from stepguard.cli import main, option_help
from stepguard.cli.spike import options, side_by_side
from stepguard.cli.spike.models import MODELS
from stepguard.guard import ACTIONS

RUNS = ["no spike", "plain", "clipped", "guarded"]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A short demo: exit code, what it printed, its folder."""
    root = tmp_path_factory.mktemp("demo")
    return demos.stepguard("demo", "--steps", 12, "--at", 6, "--log-dir", root), root / "run-1"


def table_rows(text):
    return demos.table_rows(text, RUNS, columns=4)


def test_the_table_has_the_four_runs(short):
    done, _ = short
    assert (done.returncode, done.stderr) == (0, "")
    rows = table_rows(done.stdout)
    assert list(rows) == RUNS
    before = {cells[0] for cells in rows.values()}
    assert len(before) == 1  # one seed, one data order: alike until the spike
    assert rows["guarded"][3] == "1" and float(rows["plain"][3]) > 100


def test_without_a_terminal_it_is_readable_text(short):
    done, folder = short
    assert "\x1b" not in done.stdout
    body = [line for line in done.stdout.splitlines() if str(folder) not in line]
    assert max(map(len, body)) <= 80
    assert f"stepguard dashboard {folder}" in done.stdout and f"{folder}/demo.png" in done.stdout
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_agrees_with_the_logs(short):
    done, folder = short
    for run, (before, lowest, final, largest_r) in table_rows(done.stdout).items():
        logged = scalars(folder / run.replace(" ", "-"))
        accuracy, r_taken = logged["test/accuracy"], logged["train/r_taken"]
        assert list(accuracy) == list(logged["train/loss"]) == list(logged["stepguard/r"]) == list(range(12))
        assert before == f"{accuracy[5]:.1f}" and final == f"{accuracy[11]:.1f}"
        assert lowest == f"{min(accuracy[step] for step in range(6, 12)):.1f}"
        assert largest_r == f"{max(r_taken.values()):.3g}"


def test_back_to_calm_is_the_run_without_a_spike(tmp_path, capsys):
    assert main(["demo", "spike", "--steps", "50", "--at", "40", "--log-dir", str(tmp_path)]) == 0
    rows = table_rows(capsys.readouterr().out)
    assert rows["guarded"] == rows["no spike"] != rows["plain"]
    assert (
        main(["demo", "spike", "--steps", "50", "--at", "40", "--clamp-to", "limit", "--log-dir", str(tmp_path)]) == 0
    )
    text = capsys.readouterr().out
    assert table_rows(text)["guarded"][3] == "1" and "clamp to limit, r = 1" in text


def test_the_guarded_run_logs_every_breach(short):
    logged = scalars(short[1] / "guarded")
    beyond = {step: r for step, r in logged["stepguard/r"].items() if r > 1}
    assert list(beyond) == list(range(6, 12))
    assert logged["stepguard/r_breach"] == beyond
    assert logged["train/lr"][6] == pytest.approx(100.0)
    assert logged["stepguard/lr_applied"][6] == pytest.approx(100.0 / logged["stepguard/r"][6])


def short_demo(folder, *options):
    return main(["demo", "--steps", "5", "--at", "3", "--log-dir", str(folder), *options])


def test_seeds_have_a_folder_each_and_medians_in_the_table(tmp_path, capsys):
    assert short_demo(tmp_path, "--seeds", "2", "--seed", "4", "--action", "observe", "--for", "1") == 0
    out = capsys.readouterr().out
    assert "Medians over 2 seeds; r is the largest of all." in out and "observed" in out
    found = sorted(str(p.parent.relative_to(tmp_path)) for p in tmp_path.glob("*/*/*/events*"))
    runs = ("clipped", "no-spike", "observed", "plain")
    assert found == [f"run-1/{run}/seed-{seed}" for run in runs for seed in (4, 5)]


def test_a_second_demo_leaves_what_is_there_alone(tmp_path, capsys):
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "mine.txt").write_text("keep me")
    assert short_demo(tmp_path) == 0
    assert [p.name for p in (tmp_path / "run-1").iterdir()] == ["mine.txt"]
    assert (tmp_path / "run-2" / "demo.png").exists()


@pytest.mark.parametrize("model", ["mlp-ln", "transformer"])
def test_other_models(tmp_path, capsys, model):
    assert short_demo(tmp_path, "--model", model, "--action", "drive", "--target", "0.5") == 0
    out = capsys.readouterr().out
    assert table_rows(out)["guarded"][3] == "0.5" and "lr 0.015" in out


def interrupted_after(monkeypatch, steps):
    trained = side_by_side.train

    def train(run):
        for frame in trained(run):
            # In the midst of a round: the other runs have made this step already.
            if run.clip and run.seed == 1 and frame.step == steps:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(side_by_side, "train", train)


def test_interrupted_it_shows_what_there_is(tmp_path, capsys, monkeypatch):
    interrupted_after(monkeypatch, 4)
    assert short_demo(tmp_path, "--seed", "1") == 130
    out = capsys.readouterr().out
    assert list(table_rows(out)) == RUNS and "Stopped after 4 of 5 steps" in out
    assert (tmp_path / "run-1" / "demo.png").exists()
    assert list(scalars(tmp_path / "run-1" / "plain")["train/loss"]) == [0, 1, 2, 3]


def test_interrupted_in_its_second_seed_it_shows_the_first(tmp_path, capsys, monkeypatch):
    interrupted_after(monkeypatch, 2)
    assert short_demo(tmp_path, "--seeds", "2") == 130
    assert "Stopped after 1 of 2 seeds" in capsys.readouterr().out


def test_interrupted_at_once(tmp_path, capsys, monkeypatch):
    interrupted_after(monkeypatch, 0)
    assert short_demo(tmp_path, "--seed", "1") == 130
    assert "Stopped before the first step" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--at", "200"], r"--at 200: the run ends after 200 steps.*Choose --at below 200"),
        (["--steps", "0"], r"--steps: must be at least 1, got 0"),
        (["--steps", "2.5"], r"--steps: must be a whole number, got '2.5'"),
        (["--at", "-1"], r"--at: must not be negative"),
        (["--for", "0"], r"--for: must be at least 1"),
        (["--seeds", "0"], r"--seeds: must be at least 1"),
        (["--lr", "0"], r"--lr: must be positive and finite, got 0"),
        (["--lr", "fast"], r"--lr: must be a number, got 'fast'"),
        (["--spike", "nan"], r"--spike: must be positive and finite, got nan"),
        (["--target", "inf"], r"--target: must be positive and finite"),
        (["--lr", "1e300", "--spike", "1e300"], r"too large"),
        (["--lr", "1e34"], r"--lr 1e\+34 times --spike 10000 is too large: Adam can take 1e\+37"),
        (["--lr", "1e38", "--spike", "0.1"], r"too large"),
        (["--seed", str(2**63)], r"--seed: must be below 2\*\*63, got 9223372036854775808"),
        (["--model", "gpt"], r"invalid choice: 'gpt'"),
        (["--action", "brake"], r"invalid choice: 'brake'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as refused:
        main(["demo", "--log-dir", str(tmp_path / "new"), *options])
    assert refused.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "new").exists()


def test_a_log_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        short_demo(tmp_path / "file")
    assert f"no folder can be made in {tmp_path / 'file'} (File exists)" in capsys.readouterr().err


def test_missing_packages_are_named_with_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(option_help, "find_spec", lambda name: None if name == "sklearn" else object())
    with pytest.raises(SystemExit, match="2"):
        main(["demo"])
    err = " ".join(capsys.readouterr().err.split())
    assert "the demo needs scikit-learn: pip install 'stepguard[demo]'" in err


def test_help_teaches():
    done = demos.stepguard("demo", "spike", "--help", COLUMNS="80")
    assert done.stderr == "" and done.returncode == 0
    for part in ("examples:", "default: 10,000", "default: 0.01 for mlp", "runs/demo", "{clamp,drive,observe}"):
        assert part in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_largest_numbers_that_are_accepted_can_be_trained_with(tmp_path, capsys):
    assert short_demo(tmp_path, "--lr", "1e33", "--seed", str(2**63 - 1), "--seeds", "2") == 0
    assert "Medians over 2 seeds" in capsys.readouterr().out


def test_choices_are_those_of_the_library():
    assert sorted(options.SETUPS) == sorted(MODELS)
    assert sorted(options.ACTIONS) == sorted(ACTIONS)
