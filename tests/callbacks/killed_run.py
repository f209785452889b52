"""A Lightning run that may kill its own process, for test_killed: in a module of its own, to be run by another one."""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from reference import mlp
from torch.utils.data import DataLoader

from stepguard.callbacks import SoftmaxCollapseMonitor, StepGuard

STEPS, EVERY = 60, 7


class Kill(NamedTuple):
    """When the process ends itself, by SIGKILL: at a step, and what it does then."""

    step: int
    doing: str

    def now(self, step, doing):
        if (step, doing) == self:
            os.kill(os.getpid(), signal.SIGKILL)


class Deadly(torch.optim.Adam):
    """May die with half of its parameters moved."""

    def __init__(self, module):
        super().__init__(module.parameters(), lr=0.02)
        self.module = module

    def step(self, closure=None):
        first = self.param_groups[0]["params"][0]
        with torch.enable_grad():
            loss = closure()
        before = first.detach().clone()
        super().step()
        if self.module.kill == (self.module.global_step, "step"):
            with torch.no_grad():
                first.copy_(before)
        self.module.kill.now(self.module.global_step, "step")
        return loss


class Module(LightningModule):
    """Batches by the number of the step, for Lightning begins an epoch anew when it goes on within one."""

    def __init__(self, kill):
        super().__init__()
        self.model, self.kill = mlp(), kill
        self.x = torch.randn(STEPS, 8, 12)
        self.y = torch.randint(0, 5, (STEPS, 8))

    def training_step(self, batch, index):
        logits = self.model(self.x[self.global_step])
        self.kill.now(self.global_step, "forward")
        return F.cross_entropy(logits, self.y[self.global_step])

    def configure_optimizers(self):
        optimizer = Deadly(self)
        # The rate jumps now and then, so that some steps are clamped.
        jumps = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e3 if step % 13 == 12 else 1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": jumps, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint):
        self.kill.now(self.global_step, "checkpoint")


class Diary(Callback):
    """Every reading, written down at once."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        found = [c.last for c in trainer.callbacks if isinstance(c, (StepGuard, SoftmaxCollapseMonitor))]
        with self.path.open("a") as file:
            file.write(json.dumps([reading and reading.as_dict() for reading in found]) + "\n")


def run(folder, name, cadence, kill, checkpoint):
    """Train, perhaps from a checkpoint, and leave the state at the end in ``<name>.pt``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    folder, module = Path(folder), Module(kill)
    guard = StepGuard(target=0.5, cadence=cadence)
    monitor = SoftmaxCollapseMonitor("perp_grad", cadence=3, headroom=16.3)
    keep = ModelCheckpoint(folder / name, "{step}", save_top_k=-1, every_n_train_steps=EVERY)
    trainer = Trainer(
        max_steps=STEPS,
        callbacks=[guard, monitor, keep, Diary(folder / f"{name}.jsonl")],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.zeros(25, 1)), ckpt_path=checkpoint)
    states = {"guard": guard.state_dict(), "monitor": monitor.state_dict()}
    torch.save([module.state_dict(), trainer.optimizers[0].state_dict(), states], folder / f"{name}.pt")
