"""``stepguard watch`` as a person runs it, on files that other processes write."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from pseudo_terminal import Program

from stepguard.cli import main
from stepguard.records import Event, JsonLines, Reading, breach_event

WATCH = [sys.executable, "-m", "stepguard.cli", "watch"]
GROWS = """
import pathlib, sys, time
from stepguard.records import JsonLines, Reading, breach_event
lines = JsonLines(sys.argv[1])
for step in range(40):
    while step == 10 and not pathlib.Path(sys.argv[1]).with_name("go").exists():
        time.sleep(0.02)  # whoever looks has seen the beginning
    r = 5.0 if step >= 20 else 0.1
    reading = Reading(step, r, r, 1.0, 3 * r, 1 / r if r > 1 else 1.0, 0.1, 0.1, 1.0)
    lines.reading(reading)
    if reading.breach:
        lines.event(breach_event(reading))
    time.sleep(float(sys.argv[2]))
lines.close()
"""


def reading(step, r):
    return Reading(step, r, tau=r, rho=1.0, spread=3 * r, scale=1.0, lr=0.1, lr_applied=0.1, target=1.0)


def write(folder, *readings, end=True):
    lines = JsonLines(folder)
    for seen in readings:
        lines.reading(seen)
        if seen.breach:
            lines.event(breach_event(seen))
    if end:
        lines.close()
    else:
        lines._file.close()  # as a killed process leaves it


@pytest.fixture
def growing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", GROWS, tmp_path / "now", "0.05"])
    while not (tmp_path / "now" / "stepguard.jsonl").exists():
        time.sleep(0.05)
    yield tmp_path
    process.kill()
    process.wait()


def test_in_a_terminal_a_growing_run_is_followed_and_ctrl_c_ends_it(growing):
    with Program([*WATCH, str(growing), "--every", "0.1"], width=100, height=24) as program:
        assert program.until("now  running") and program.until("0 of ")
        (growing / "go").touch()
        assert program.until("20 of 40 readings beyond")
        assert program.until("now  ended") and program.until("clamp     20")
        picture = program.screen.text
        assert "?1049h" in program.screen.modes and "?1049l" not in program.screen.modes
        program.type(b"\x03")
        assert program.end() == 0
        assert program.screen.modes.count("?1049l") == 1 and program.screen.modes.count("?25h") == 1
        left = [line for line in program.screen.text.splitlines() if line]
        assert left == [line for line in picture.splitlines() if line]  # the last picture stays; no traceback


def test_without_a_terminal_lines_come_as_it_grows_and_end_with_it(growing):
    command = [*WATCH, growing, "--every", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        came = []
        for line in process.stdout:
            came.append((time.monotonic(), line.rstrip()))
            (growing / "go").touch()
    assert process.returncode == 0
    lines = [line for _, line in came]
    assert lines[0].startswith("now: step ") and "0 of" in lines[0]
    assert lines[1].startswith("now: step 20: r = 5 (target 1)") and "and 10 more: clamp" in lines[2]
    assert lines[-2].startswith("now: and 9 more: clamp, latest step 39: r 5 -> 1")
    assert lines[-1].startswith("now: step 39, r 5 -> 1 of 1") and "20 of 40 readings beyond" in lines[-1]
    assert came[-1][0] - came[0][0] > 0.5  # not all at the end
    assert "\x1b" not in "".join(lines) and len(lines) == 5


def test_without_a_terminal_ctrl_c_ends_it_and_tells_the_rest(tmp_path):
    write(tmp_path, *(reading(step, 5.0) for step in range(6)), end=False)
    process = subprocess.Popen([*WATCH, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == ""
    assert "step 0: r = 5" in first[0] and "step 5, r 5 of 1" in first[1]
    assert rest.endswith("and 5 more: breach, latest step 5: r 5\n")


@pytest.mark.parametrize("width", ["80", "200"])
def test_once_without_a_terminal_is_a_single_picture_without_colours(width, tmp_path):
    write(tmp_path / "run-a", *(reading(step, 0.3) for step in range(50)))
    environment = {**os.environ, "COLUMNS": width}
    done = subprocess.run([*WATCH, tmp_path, "--once"], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and "\x1b" not in done.stdout
    assert "run-a  ended" in lines[0] and {len(line) for line in lines} == {int(width)}


def test_of_several_runs_the_newest_is_shown_below_a_table_of_all(tmp_path, capsys, monkeypatch):
    for i in range(12):
        write(tmp_path / f"seed-{i}", reading(0, 0.1), reading(1, 3.0 if i == 3 else 0.2))
    time.sleep(0.01)  # the time of a record has milliseconds
    write(tmp_path / "seed-3", reading(2, 4.0))
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["watch", str(tmp_path), "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split()[0] for line in lines if line.startswith(" seed-")]
    assert table[0] == "seed-3" and len(table) == 5 and any("and 7 more" in line for line in lines)
    assert any(line.startswith("╭─ seed-3") for line in lines) and max(map(len, lines)) <= 80


def test_one_run_by_name(tmp_path, capsys):
    write(tmp_path / "a", reading(0, 0.1))
    write(tmp_path / "b", reading(0, 0.1))
    assert main(["watch", str(tmp_path), "--once", "--run", "a"]) == 0
    assert capsys.readouterr().out.startswith("╭─ a  ended")


def test_a_run_that_begins_later_is_found(tmp_path):
    write(tmp_path / "first", reading(0, 0.1), end=False)
    with Program([*WATCH, str(tmp_path), "--every", "0.2"], width=80, height=40) as program:
        assert program.until("first  running")
        threading.Timer(0.1, write, [tmp_path / "second", reading(7, 0.1)]).start()
        assert program.until("╭─ second  ended", seconds=20)


MISTAKES = {
    "a folder that is not there": (["{}/nowhere"], "there is no folder .*nowhere; give the log_dir="),
    "a folder without records": (["{}/empty"], r"there are no records in .*empty.*log_dir="),
    "a run that is not there": (["{}", "--run", "c"], "there is no run c in .*; there are a, b"),
    "no folder": ([], "LOGDIR"),
    "a pace that cannot be": (["{}", "--every", "0"], "must be positive"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told(mistake, tmp_path, capsys):
    arguments, message = MISTAKES[mistake]
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a", reading(0, 0.1))
    write(tmp_path / "b", reading(0, 0.1))
    with pytest.raises(SystemExit) as raised:
        main(["watch", *(argument.format(tmp_path) for argument in arguments)])
    assert raised.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_names_of_runs_are_not_markup(tmp_path, capsys):
    write(tmp_path / "lr=[0.1]", reading(0, 0.1))
    lines = JsonLines(tmp_path / "[bold]x[/]")
    lines.event(Event(0, "unmeasured", "step 0 [red]was not measured[/]"))
    lines.close()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    out = capsys.readouterr().out
    assert "lr=[0.1]" in out and "[bold]x[/]" in out and "[red]was" in out


def test_the_help_answers_without_torch_or_rich():
    code = "import sys; from stepguard.cli import main\ntry: main(['watch', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout and done.stdout.endswith("[]\n")
