"""Our callbacks from a command line and from YAML, under both names of Lightning."""

import importlib
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from test_lightning import data
from test_lightning import pytestmark as pytestmark

from stepguard.callbacks import PerpGrad, SoftmaxCollapseMonitor, StepGuard, SuggestLR
from stepguard.guard import CollapseSettings, Settings

pytest.importorskip("jsonargparse")

QUIET = ["accelerator=cpu", "max_epochs=1", "logger=false", "enable_checkpointing=false"]
QUIET += ["enable_progress_bar=false", "enable_model_summary=false"]


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def package(request):
    with warnings.catch_warnings():  # of packages that it imports, at each import
        warnings.simplefilter("ignore")
        return pytest.importorskip(request.param), importlib.import_module(f"{request.param}.cli")


def doubled(z: torch.Tensor) -> torch.Tensor:
    """What an argument may name; the annotations are looked at."""
    return 2 * z


@pytest.fixture
def command_line(package, monkeypatch):
    """A program with Lightning's command line, from its arguments to what it made and our callbacks in that."""

    def called(*arguments):
        settings = [f"--trainer.{setting}" for setting in QUIET]
        # Lightning's command line calls what its parser deprecates.
        monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        monkeypatch.setattr(sys, "argv", ["program.py", "--seed_everything=0", *settings, *arguments])
        return program(*package)

    return called


def program(lightning, cli):

    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.1):
            super().__init__()
            self.model, self.lr = mlp(), lr

        def training_step(self, batch, index):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), self.lr)

        def train_dataloader(self):
            return data()

    made = cli.LightningCLI(Module, run=False, save_config_callback=None)
    return made, [c for c in made.trainer.callbacks if type(c).__module__.startswith("stepguard.")]


ARGUMENTS = {
    "nothing": (StepGuard, {}, Settings()),
    "a target": (StepGuard, {"target": "0.5"}, Settings(target=0.5)),
    "a cadence by its name": (StepGuard, {"cadence": "every"}, Settings(cadence="every")),
    "a cadence as a number": (StepGuard, {"cadence": "5"}, Settings(cadence=5)),
    "a function": (StepGuard, {"logits": f"{__name__}.doubled"}, Settings(logits=doubled)),
    "all else": (
        StepGuard,
        {"action": "observe", "quantile": "0.9", "strict": "true", "batch_norm": "eval", "budget": "0.1"}
        | {"screen": "false", "clamp_to": "limit", "module": "model", "optimizer": "0"},
        Settings("observe", 1.0, "auto", None, None, 0.9, True, "eval", 0.1, False, "limit"),
    ),
    "a monitor": (SoftmaxCollapseMonitor, {}, CollapseSettings()),
    "a monitor that cures": (
        SoftmaxCollapseMonitor,
        {"on_warning": "perp_grad", "cadence": "3", "horizon": "9", "headroom": "2", "per_layer": "true"}
        | {"strict": "true", "optimizer": "0"},
        CollapseSettings("perp_grad", 3, 9, 2.0, True, True),
    ),
    "perpGrad": (PerpGrad, {"over": "all", "restore_norm": "false", "matrices_only": "true"}, None),
    "a suggestion": (SuggestLR, {"update": "true", "target": "0.5", "batches": "2"}, None),
}


@pytest.mark.parametrize("form", ["command line", "YAML"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_callbacks_can_be_written_down(name, form, command_line, tmp_path):
    kind, arguments, settings = ARGUMENTS[name]
    if form == "YAML":
        lines = ["trainer:", "  callbacks:", f"    - class_path: stepguard.callbacks.{kind.__name__}"]
        lines += ["      init_args:"] * bool(arguments) + [f"        {k}: {v}" for k, v in arguments.items()]
        (tmp_path / "run.yaml").write_text("\n".join(lines))
        given = ["--config", str(tmp_path / "run.yaml")]
    else:
        given = [f"--trainer.callbacks+=stepguard.callbacks.{kind.__name__}"]
        given += [f"--trainer.callbacks.{k}={v}" for k, v in arguments.items()]
    cli, (callback,) = command_line(*given)
    assert type(callback) is kind
    assert settings is None or callback._settings == settings
    if "optimizer" in arguments:
        assert callback.state_key == kind(optimizer=0).state_key


def test_a_run_from_the_command_line(command_line):
    given = ["--trainer.callbacks+=stepguard.callbacks.StepGuard", "--trainer.callbacks.target=0.2"]
    given += ["--trainer.callbacks+=stepguard.callbacks.SoftmaxCollapseMonitor"]
    cli, (guard, monitor) = command_line(*given, "--model.lr=10")
    cli.trainer.fit(cli.model)
    assert guard.last.target == 0.2 and guard.last.scale < 1 and monitor.last is not None


def test_a_guard_for_each_optimizer(command_line):
    both = []
    for number, target in enumerate((0.5, 0.3)):
        both += ["--trainer.callbacks+=stepguard.callbacks.StepGuard", f"--trainer.callbacks.optimizer={number}"]
        both += [f"--trainer.callbacks.target={target}"]
    _, guards = command_line(*both)
    assert [guard._settings.target for guard in guards] == [0.5, 0.3]
    assert len({guard.state_key for guard in guards}) == 2


def test_a_setting_that_makes_no_sense_is_told(command_line, capsys):
    with pytest.raises(SystemExit):
        command_line("--trainer.callbacks+=stepguard.callbacks.StepGuard", "--trainer.callbacks.action=clip")
    assert "observe" in capsys.readouterr().err
