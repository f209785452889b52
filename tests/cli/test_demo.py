"""What the demos have in common: which one runs, and what their help says."""

import subprocess
import sys

import pytest
from cli.demos import stepguard

from stepguard import __version__
from stepguard.cli import main
from stepguard.cli.grokking import race
from stepguard.cli.spike import options, side_by_side


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """Instead of running: the demos begun, as their name and plan."""
    plans = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(side_by_side, "side_by_side", lambda plan, folder: plans.append(("spike", plan)) or 0)
    monkeypatch.setattr(race, "race", lambda plan, folder: plans.append(("grokking", plan)) or 0)
    return plans


def test_the_spike_is_the_demo_of_those_who_name_none(begun, monkeypatch):
    assert main(["demo"]) == main(["demo", "spike"]) == 0
    monkeypatch.setattr(sys, "argv", ["stepguard", "demo"])
    assert main() == 0
    assert [name for name, _ in begun] == ["spike"] * 3
    assert begun[0] == begun[1] == begun[2]
    plan = begun[0][1]
    assert (plan.model, plan.setup, plan.steps, plan.start) == ("mlp", options.SETUPS["mlp"], 200, 50)


def test_its_options_need_no_name_either(begun):
    assert main(["demo", "--steps", "9", "--at", "3"]) == main(["demo", "spike", "--steps", "9", "--at", "3"]) == 0
    assert begun[0] == begun[1] and begun[0][1].steps == 9


def test_grokking_is_begun_by_name(begun):
    assert main(["demo", "grokking"]) == 0
    assert [(name, plan.epochs, plan.modulus) for name, plan in begun] == [("grokking", 160, 113)]


def test_each_demo_has_a_new_folder_in_the_same_place(begun, tmp_path):
    for _ in range(2):
        assert main(["demo"]) == main(["demo", "grokking"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs/demo").iterdir()) == ["run-1", "run-2", "run-3", "run-4"]


def test_a_demo_that_does_not_exist_is_refused_with_those_that_do(begun, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "groking"])
    err = capsys.readouterr().err
    assert "invalid choice: 'groking'" in err and "spike" in err and "grokking" in err
    assert begun == []


def test_help_names_both_demos():
    done = stepguard("demo", "--help", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for part in (
        "The steps get too long.",
        "The logits get too large.",
        "stepguard demo the spike",
        "demo grokking --help",
    ):
        assert part in text
    lines = [line.split() for line in done.stdout.splitlines()]
    listed = lines[lines.index(["demos:"]) :]
    assert [row[0] for row in listed if row and row[0] in ("spike", "grokking")] == ["spike", "grokking"]
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["demo", "--help"], ["demo", "spike", "--help"], ["demo", "grokking", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        f"import sys; from stepguard.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'rich', 'matplotlib', 'sklearn', 'numpy'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: stepguard demo")


def test_version_and_no_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"stepguard {__version__}\n"
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out
