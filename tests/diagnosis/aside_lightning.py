"""The same, by Lightning's Trainer, which steps its schedule itself."""

import logging
import warnings

import torch
from aside_training import Training, cross_entropy
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from stepguard.callbacks import StepGuard


class Module(LightningModule):
    def __init__(self, net, optimizer, schedule, fault, seed):
        super().__init__()
        self.net = net()
        self.own = (optimizer, schedule, fault)
        self.seen = Training(self.net, None, generator=torch.Generator().manual_seed(seed))

    def training_step(self, batch, index):
        self.seen.optimizer, self.seen.step = self.optimizers().optimizer, self.trainer.global_step
        self.seen.x, self.seen.y = batch
        if self.own[2]:
            self.own[2](self.seen)
        return cross_entropy(self.net(self.seen.x), self.seen.y)

    def configure_optimizers(self):
        optimizer = self.own[0](self.net)
        if not self.own[1]:
            return optimizer
        return [optimizer], [{"scheduler": self.own[1](optimizer), "interval": "step"}]


def fit(folder, seed, *, data, net, optimizer, steps, batch=64, schedule=None, fault=None, clip=None, **guarded):
    torch.manual_seed(seed)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and on what it logs
        trainer = Trainer(
            max_steps=steps,
            max_epochs=-1,
            accelerator="cpu",
            logger=CSVLogger(folder, name="", version=""),
            callbacks=[StepGuard(show=False, **guarded)],
            gradient_clip_val=clip,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        loader = DataLoader(TensorDataset(*data()), batch_size=batch, shuffle=True, drop_last=True)
        trainer.fit(Module(net, optimizer, schedule, fault, seed), loader)
