"""``stepguard report`` as a person runs it."""

import json
import os
import re
import subprocess
import sys

import pytest
from made_up_runs import jump, look, reading, write

from stepguard.cli import main

REPORT = [sys.executable, "-m", "stepguard.cli", "report"]


@pytest.fixture
def runs(tmp_path):
    """One that was spoiled, and one that was not."""
    readings, events = jump()
    write(tmp_path / "runs" / "bad", readings, events)
    write(tmp_path / "runs" / "good", [reading(s) for s in range(60)], looks=[look(0, 9.0)])
    return tmp_path / "runs"


def test_a_run_in_the_terminal(runs, capsys):
    assert main(["report", str(runs / "bad")]) == 0
    out = capsys.readouterr().out
    assert "Run bad" in out and "step 40: r = 20 of 1: learning rate jump." in out and "\x1b" not in out


def test_several_runs_and_one_of_them_by_name(runs, capsys):
    main(["report", str(runs)])
    out = capsys.readouterr().out
    assert "2 runs, 1 of them spoiled" in out and "Run bad" in out and "Run good" in out
    main(["report", str(runs), "--run", "good"])
    out = capsys.readouterr().out
    assert "Run good" in out and "bad" not in out


def test_files_are_written_and_what_is_in_them_is_said(runs, capsys):
    html, markdown = runs.parent / "r.html", runs.parent / "r.md"
    assert main(["report", str(runs), "--html", str(html), "--markdown", str(markdown)]) == 0
    assert html.read_text().startswith("<!DOCTYPE html>") and markdown.read_text().startswith("# stepguard")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "bad: step 40: r = 20 of 1: learning rate jump." in captured.err and f"{html}: " in captured.err


@pytest.mark.parametrize("option, begins", {"--html": "<!DOCTYPE html>", "--markdown": "# stepguard"}.items())
def test_a_dash_is_the_standard_output(option, begins, runs, capsys):
    assert main(["report", str(runs), option, "-"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(begins) and captured.err == ""


@pytest.mark.parametrize("options", [[], ["--json"], ["--html", "-"], ["--markdown", "-"]], ids=" ".join)
def test_a_terminal_that_knows_no_more_than_ascii(options, runs):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*REPORT, runs, *options], capture_output=True, env=environment)
    assert done.returncode == 0 and b"learning rate jump" in done.stdout and done.stderr == b""
    assert "-" in options or done.stdout.isascii()


def test_json_for_scripts_beside_a_file(runs, capsys):
    assert main(["report", str(runs), "--json", "--html", str(runs.parent / "r.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["name"], run["cause"]) for run in found["runs"]] == [
        ("bad", "learning rate jump"),
        ("good", "healthy"),
    ]


CHECKS = {"all": ([], 1), "the good one": (["--run", "good"], 0), "the bad one": (["--run", "bad"], 1)}


@pytest.mark.parametrize("case", CHECKS)
def test_check_tells_by_its_exit_status(case, runs, capsys):
    arguments, status = CHECKS[case]
    assert main(["report", str(runs), *arguments]) == 0
    assert main(["report", str(runs), *arguments, "--check"]) == status
    assert main(["report", str(runs), *arguments, "--check", "--json"]) == status


MISTAKES = {
    "a folder that is not there": (["{}/nowhere"], "there is no folder .*nowhere; give the log_dir="),
    "a file": (["{}/bad/stepguard.jsonl"], "there is no folder .*stepguard.jsonl; give its folder, .*bad"),
    "a folder without records": (["{}/../empty"], r"there are no records in .*empty.*log_dir="),
    "a run that is not there": (["{}", "--run", "c"], "there is no run c in .*; there are bad, good"),
    "no folder": ([], "LOGDIR"),
    "two for the standard output": (["{}", "--json", "--html", "-"], "only one of .* can have the standard output"),
    "a file that cannot be": (["{}", "--html", "{}/no/r.html"], "cannot be written .*; choose another file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake, runs, capsys):
    arguments, message = MISTAKES[mistake]
    (runs.parent / "empty").mkdir()
    with pytest.raises(SystemExit) as raised:
        main(["report", *(argument.format(runs) for argument in arguments)])
    assert raised.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_a_run_of_which_only_scalars_are_left(tmp_path, capsys):
    from stepguard.records import TensorBoard

    board = TensorBoard(tmp_path / "old")
    for step in range(30):
        board.reading(reading(step, 0.3 if step != 20 else 5.0))
    board.close()
    assert main(["report", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "made from TensorBoard's scalars" in out and "The largest r that was asked for is 5, at step 20." in out
    for option in ("--json", "--html", "--markdown"):
        assert main(["report", str(tmp_path), option, *([] if option == "--json" else ["-"])]) == 0


def test_a_run_that_was_killed_is_told(tmp_path, capsys):
    write(tmp_path / "a", [reading(0)], end=False)
    with open(tmp_path / "a" / "stepguard.jsonl", "a") as file:
        file.write('{"kind": "rea\n')
    assert main(["report", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "has not said that it is over" in out and "line 3: no record, left out" in out


def test_it_takes_neither_torch_nor_tensorboard(runs):
    code = (
        "import sys; from stepguard.cli import main\n"
        f"for more in ([], ['--json'], ['--markdown', '-'], ['--html', '-']): main(['report', {str(runs)!r}, *more])\n"
        "print('loaded', sorted({'torch', 'tensorboard', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("width", [80, 200])
def test_without_a_terminal_the_width_is_that_of_the_environment(width, runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    main(["report", str(runs)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == width


def test_a_long_reading_says_how_far_it_is(runs, monkeypatch, capsys):
    monkeypatch.setattr("stepguard.views.report.reading._PATIENCE", 0.0)
    monkeypatch.setattr("stepguard.views.report.reading._AT_ONCE", 4000)
    write(runs / "long", [reading(s) for s in range(2000)])
    main(["report", str(runs / "long")])
    captured = capsys.readouterr()
    assert re.search(r"^long: \d+% of 1 MB read$", captured.err, re.MULTILINE) and "Run long" in captured.out


def test_the_help_teaches_by_examples():
    done = subprocess.run([*REPORT, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n  stepguard report ") >= 5 and "--check" in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"], ["--html", "-"], ["--markdown", "-"]], ids=" ".join)
def test_a_reader_may_have_seen_enough(options, tmp_path):
    for i in range(20):  # more than a pipe holds
        write(tmp_path / f"run-{i}", [reading(s) for s in range(60)])
    with subprocess.Popen([*REPORT, tmp_path, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
