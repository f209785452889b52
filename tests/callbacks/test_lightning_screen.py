"""What a person sees in Lightning: r in whichever progress bar, events as lines above it, on rank zero only."""

import builtins
import re
import sys
import warnings
from pathlib import Path

import pytest
from pseudo_terminal import Program, Written
from rich import get_console
from test_lightning import data, heard
from test_lightning import pytestmark as pytestmark
from test_lightning_names import NAMES, fit, module_of

from stepguard.callbacks import SoftmaxCollapseMonitor, StepGuard

SEEN = {
    "rich": ("lightning", "RichProgressBar", "guard", r"Epoch 4/4 .* stepguard/r: \d"),
    "rich, before the guard": ("lightning", "RichProgressBar", "bar", r"Epoch 4/4 .* stepguard/r: \d"),
    "tqdm": ("lightning", "TQDMProgressBar", "guard", r"Epoch 4: 100%.* stepguard/r=\d"),
    "tqdm of pytorch_lightning": ("pytorch_lightning", "TQDMProgressBar", "bar", r"Epoch 4: 100%.* stepguard/r=\d"),
}
LINES = [
    r"stepguard: step 0: r = .* \(target 0.2\), .*: scaled by .*",
    r"stepguard: and 10 more: clamp, latest step 10: r .* -> 0.2",
    r"stepguard: and 19 more: clamp, latest step 29: r .* -> 0.2",
]


def of_clamps(lines):
    return [line for line in lines if "stepguard:" in line and ("scaled by" in line or "more: clamp" in line)]


def trained(named, *bar, first="guard"):
    module, guard = module_of(named.package, lr=10.0), StepGuard(target=0.2, cadence="every")
    module.val_dataloader = lambda: data(2)
    module.validation_step = lambda batch, batch_idx: None
    fit(named, module, *([guard, *bar] if first == "guard" else [*bar, guard]), max_epochs=5, enable_progress_bar=True)
    print("after it")


@pytest.mark.parametrize("name", SEEN)
def test_in_a_terminal(name, monkeypatch):
    package, kind, first, shown = SEEN[name]
    written = Written()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, written)
    settings = {"console_kwargs": {"file": written, "force_terminal": True, "width": 120, "height": 30}}
    before = dict(vars(get_console()))
    bar = getattr(NAMES[package].package.callbacks, kind)(**(settings if kind == "RichProgressBar" else {}))
    trained(NAMES[package], bar, first=first)
    vars(get_console()).update(before)
    text = written.screen(120, 30).text
    lines = text.splitlines()
    ours = of_clamps(lines)
    assert len(ours) == len(LINES) and all(map(re.fullmatch, LINES, ours)), text
    assert any(re.search(shown, line) for line in lines), text
    assert [line for line in lines if line][-1] == "after it"


def test_with_the_bar_that_lightning_takes_itself():
    here = Path(__file__).parent
    code = "import warnings; warnings.simplefilter('ignore'); import test_lightning_screen as t; "
    code += "t.trained(t.NAMES['lightning'])"
    paths = ":".join(map(str, (here.parent.parent, here.parent, here)))
    with Program([sys.executable, "-c", code], width=120, height=30, PYTHONPATH=paths) as program:
        assert program.end() == 0, program.screen.text
    text = program.screen.text
    assert re.search(r"Epoch 4.* stepguard/r", text) and "more: clamp" in text and "after it" in text


@pytest.mark.parametrize("package", NAMES)
def test_without_a_bar_events_are_lines(package, capsys):
    fit(NAMES[package], module_of(NAMES[package].package, lr=10.0), StepGuard(target=0.2), max_epochs=5)
    lines = of_clamps(capsys.readouterr().out.splitlines())
    assert len(lines) == len(LINES) and all(map(re.fullmatch, LINES, lines))


def test_what_is_calm_says_nothing(capsys):
    named = NAMES["lightning"]
    fit(named, module_of(named.package, lr=1e-3), StepGuard(), SoftmaxCollapseMonitor())
    assert "stepguard" not in capsys.readouterr().out


def test_three_hundred_clamps_are_a_handful_of_lines(capsys):
    named = NAMES["lightning"]
    guard = StepGuard(target=0.01, cadence="every")
    seen = heard(guard)
    fit(named, module_of(named.package, lr=10.0), guard, max_epochs=50)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stepguard")]
    clamps = of_clamps(lines)
    counted = sum(int(found[1]) if (found := re.search(r"and (\d+) more: clamp", line)) else 1 for line in clamps)
    assert counted == sum(event.kind == "clamp" for event in seen.events) > 200
    assert len(clamps) <= 7 and len(lines) <= 16


def test_several_optimizers_are_told_apart(capsys):
    named = NAMES["lightning"]
    trainer = fit(named, module_of(named.package, lr=10.0, optimizers=2), StepGuard(target=0.2), max_epochs=3)
    assert {"stepguard/r/0", "stepguard/r/1"} <= set(trainer.progress_bar_metrics)
    out = capsys.readouterr().out
    for index in (0, 1):
        assert f"stepguard: optimizer {index}, step 0: r = " in out
        assert f"stepguard: optimizer {index}, and 10 more: clamp" in out


@pytest.mark.parametrize("r, shown", [(0.000412345, "0.000412"), (5678.0, "5.68e+03"), (float("inf"), "inf")])
def test_the_bar_has_three_digits_of_any_r(r, shown):
    from stepguard.callbacks.lightning.screen import Shown

    assert f"{Shown(r):.3f}" == shown and f"{Shown(r)}" == shown and Shown(r) == r


def test_softmax_events_are_told(capsys):
    named = NAMES["lightning"]
    module = module_of(named.package, lr=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "stepguard: step .* softmax collapse is near")
        fit(named, module, SoftmaxCollapseMonitor(cadence=1, headroom=1e3))
    assert re.search(r"^stepguard: step 0: softmax collapse is near", capsys.readouterr().out, re.MULTILINE)


def test_it_can_be_switched_off(capsys):
    named = NAMES["lightning"]
    callbacks = StepGuard(target=0.2, show=False), SoftmaxCollapseMonitor(show=False)
    trainer = fit(named, module_of(named.package, lr=10.0), *callbacks)
    assert "stepguard" not in capsys.readouterr().out and "stepguard/r" not in trainer.progress_bar_metrics
    assert "stepguard/r" in trainer.callback_metrics


def test_what_is_shown_is_not_logged_twice(tmp_path):
    named = NAMES["lightning"]
    logger = named.package.loggers.CSVLogger(tmp_path, "csv", "")
    fit(named, module_of(named.package, lr=10.0), StepGuard(), logger=logger, log_every_n_steps=2)
    rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("stepguard/r")
    assert sum(bool(row.split(",")[column]) for row in rows[1:]) == 3


def test_other_ranks_say_nothing(capsys, monkeypatch):
    named = NAMES["lightning"]
    monkeypatch.setattr(named.package.Trainer, "is_global_zero", False)
    fit(named, module_of(named.package, lr=10.0), StepGuard(target=0.2))
    assert "stepguard" not in capsys.readouterr().out


def test_a_closed_pipe_ends_no_training(monkeypatch):
    def broken(*_):
        raise BrokenPipeError("nobody reads this")

    named, guard = NAMES["lightning"], StepGuard(target=0.2)
    monkeypatch.setattr(builtins, "print", broken)
    with pytest.warns(UserWarning, match="could not be printed .nobody reads this."):
        fit(named, module_of(named.package, lr=10.0), guard)
    assert guard.guards[0].step == 6


def test_an_error_of_the_module_tells_what_was_not_told(capsys):
    named = NAMES["lightning"]
    module = module_of(named.package, lr=10.0)

    def fails(*_):
        if module.trainer.global_step == 4:
            raise KeyError("mine")

    module.on_train_batch_start = fails
    with pytest.raises(KeyError, match="mine"):
        fit(named, module, StepGuard(target=0.2))
    assert "and 3 more: clamp, latest step 3" in capsys.readouterr().out
