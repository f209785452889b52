"""The live panel in a training loop: below what the loop prints, gone when it ends, and never in its way."""

import sys

import pytest
import torch
import torch.nn.functional as F
from pseudo_terminal import Program, Written
from reference import mlp
from rich.console import Console
from rich.progress import track
from tqdm import tqdm
from views.frames import clamped, reading, room

import stepguard
from stepguard.views import Panel


def train(panel, steps):
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(64, 12), torch.randint(0, 5, (64,))
    guard = stepguard.attach(model, optimizer, cadence="every", recorders=[panel])
    with stepguard.monitor_collapse(model, optimizer, cadence=10, recorders=[panel]):
        for i in steps:
            optimizer.param_groups[0]["lr"] = 1e4 if 40 <= i < 45 else 0.1
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if i % 20 == 0:
                print("my own print", i)
        guard.detach()
    print("after it")


@pytest.fixture
def shown(monkeypatch):
    """Runs something that is given a console, and returns the lines that are on the screen then, and its modes."""

    def run(loop, width=80, height=24):
        written = Written()
        monkeypatch.setattr(sys, "stdout", written)
        monkeypatch.setattr(sys, "stderr", written)
        monkeypatch.setattr("stepguard.views.panel._EVERY", 0.005)  # drawn often, to see that it is drawn over
        loop(Console(file=written, width=width, height=height, force_terminal=True, legacy_windows=False))
        screen = written.screen(width, height)
        assert sys.stdout is written  # and not what rich puts in its place
        return [line for line in screen.text.splitlines() if line], screen.modes

    return run


@pytest.mark.parametrize("width, height", [(80, 24), (200, 50)])
def test_what_the_loop_prints_stays_above_one_panel(width, height, shown):
    lines, modes = shown(lambda console: train(Panel("my run", console=console), range(60)), width, height)
    assert lines[:3] == [f"my own print {i}" for i in (0, 20, 40)]
    assert lines[3].startswith("╭─ my run  ended") and lines[-2].startswith("╰") and lines[-1] == "after it"
    text = "\n".join(lines)
    for part in ("step 59", "5 of 60 readings beyond", "lr 0.1", "softmax", "clamp", "step 44: r"):
        assert part in text
    assert text.count("╭") == 1 and {len(line) for line in lines[3:-1]} == {width}
    assert modes[-1] == "?25h"  # the cursor is there again


def test_a_rich_bar_of_the_loop_is_shown_above_the_panel(shown):
    def loop(console):
        train(Panel("my run", console=console), track(range(60), "a bar of my own", console=console))

    lines, _ = shown(loop)
    assert lines[3].startswith("a bar of my own") and "100%" in lines[3]
    assert lines[4].startswith("╭─ my run  ended") and "\n".join(lines).count("╭") == 1


def test_beside_a_tqdm_bar_there_are_lines_above_it(shown):
    lines, _ = shown(lambda console: train(Panel("my run", console=console), tqdm(range(60), ncols=100)), width=120)
    assert not any("╭" in line for line in lines)
    ours = [
        line for line in lines if line.startswith("my run: ") and "comes from" not in line and "culprit" not in line
    ]
    assert "step 0" in ours[0] and ours[1].startswith("my run: step 40: r = ")
    assert "and 4 more: clamp, latest step 44" in ours[2] and "5 of 60 readings beyond" in ours[3]
    assert sum("60/60" in line for line in lines) == 1


def test_a_bar_that_begins_later_ends_the_drawing(shown):
    def loop(console):
        panel = Panel("my run", console=console)
        panel.reading(reading(0, 0.1))
        for step in tqdm(range(1, 4), ncols=60):
            panel.reading(reading(step, 0.1))
        panel.close()

    lines, modes = shown(loop)
    assert "\n".join(lines).count("╭") == 1 and modes == ["?25l", "?25h"]
    assert any(line.startswith("my run: step 3") for line in lines)


def test_it_is_drawn_anew_when_the_run_goes_on(shown):
    def loop(console):
        panel = Panel("my run", console=console)
        panel.reading(reading(0, 0.1))
        panel.close()
        print("between")
        panel.reading(reading(1, 0.1))
        panel.close()

    lines, _ = shown(loop)
    assert [line[:20] for line in lines if line[0] in "╭b"] == [
        "╭─ my run  ended ───",
        "between",
        "╭─ my run  ended ───",
    ]


FAILS = """
from rich.console import Console
from stepguard.records import Reading
from stepguard.views import Panel
Panel("my run").reading(Reading(0, 0.1, 0.1, 1.0, 0.3, 1.0, 0.1, 0.1, 1.0))
raise KeyError("mine")
"""


def test_an_error_of_the_loop_is_seen_and_the_cursor_comes_back():
    with Program([sys.executable, "-c", FAILS]) as program:
        assert program.end() == 1
    text = program.screen.text
    assert "KeyError: 'mine'" in text and text.count("╭─ my run") == 1 and program.screen.modes[-1] == "?25h"


def test_without_a_terminal_there_are_lines_that_do_not_flood(capsys):
    panel = Panel("it", console=Console(), every=1e9)
    for step in range(1000):
        frame = clamped(step, 400.0)
        panel.reading(frame.reading)
        panel.event(frame.events[0])
    panel.reading(room(1000, 3.0))
    panel.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 12 and "\x1b" not in "".join(lines)
    assert lines[0].startswith("it: step 0, r 400 -> 1 of 1") and lines[1] == "it: step 0: clamped"
    assert lines[2] == "it: and 10 more: clamp, latest step 10: r 400 -> 1"
    assert lines[-1].startswith("it: step 1,000") and "softmax 3.0 nats of headroom" in lines[-1]


def test_lines_on_how_it_stands_come_at_their_pace(capsys):
    panel = Panel("it", console=Console(), every=0.0)
    for step in range(5):
        panel.reading(reading(step, 0.1))
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [f"it: step {i}" for i in range(5)]


def test_only_the_first_process_shows_one(capsys, monkeypatch):
    monkeypatch.setattr("stepguard.guard.ranks.is_first", lambda: False)
    panel = Panel(console=Console())
    panel.reading(reading(0, 0.1))
    panel.close()
    assert capsys.readouterr().out == ""


def test_training_with_a_panel_is_training_without(batch, capsys):
    def trained(recorders):
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
        with stepguard.attach(model, optimizer, target=0.2, cadence="every", recorders=recorders):
            for _ in range(6):
                optimizer.zero_grad()
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()
        return model.state_dict()

    torch.testing.assert_close(trained([Panel()]), trained([]), rtol=0, atol=0)
    assert "6 of 6 readings beyond" in capsys.readouterr().out
