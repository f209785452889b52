"""Training steps as people write them in Lightning: r is right, and nothing that they log is any different."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from matrix.task import Task, reference_r
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from stepguard.callbacks import StepGuard

# Lightning's own notices about small runs on a CPU, and deprecations inside it; ours must still be errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
]

CLASSES, WIDTH, SIZE = 5, 8, 4


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.ReLU(), nn.Linear(12, CLASSES))


class Module(LightningModule):
    """What all have in common; ``logits`` is for the reference only."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    def logits(self, batch):
        return self.model(batch["x"])


class CallsItself(Module):
    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, index):
        loss = F.cross_entropy(self(batch["x"]), batch["y"])
        self.log("train/loss", loss)
        return loss


class CallsSubmodule(Module):
    def training_step(self, batch, index):
        loss = F.cross_entropy(self.model(batch["x"]), batch["y"])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return {"loss": loss, "seen": index}


class Criterion(Module):
    def __init__(self):
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weight=torch.arange(1.0, CLASSES + 1), label_smoothing=0.1)

    def training_step(self, batch, index):
        loss = self.criterion(self.model(batch["x"]), batch["y"])
        self.log_dict({"train/loss": loss, "train/index": float(index)})
        return loss


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, y):
        logits = self.net(x)
        return Output(F.cross_entropy(logits, y), logits)


class LossInside(Module):
    def __init__(self):
        super().__init__()
        self.model = WithLoss()

    def training_step(self, batch, index):
        output = self.model(**batch)
        self.log("train/loss", output.loss, prog_bar=True)
        return output.loss

    def logits(self, batch):
        return self.model.net(batch["x"])


class Measuring(Module):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")


class MetricInStep(Measuring):
    def training_step(self, batch, index):
        logits = self.model(batch["x"])
        loss = F.cross_entropy(logits, batch["y"])
        self.accuracy(logits.softmax(-1), batch["y"])
        self.log("train/accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("train/perplexity", loss.detach().exp())
        return loss


class MetricInForward(Measuring):
    def forward(self, x, y):
        logits = self.model(x)
        self.accuracy.update(logits, y)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("train/largest", logits.max())
        return logits

    def training_step(self, batch, index):
        return F.cross_entropy(self(**batch), batch["y"])


class BodyAndHead(Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.scale = nn.Linear(WIDTH, 12), nn.Linear(12, CLASSES), nn.Parameter(torch.tensor(1.5))
        del self.model

    def logits(self, batch):
        return self.scale * self.head(self.body(batch["x"]).relu())

    def training_step(self, batch, index):
        features = self.body(batch["x"]).relu()
        logits = self.scale * self.head(features)
        loss = F.cross_entropy(logits, batch["y"])
        self.log("train/loss", loss)
        self.log("train/norm", features.norm())
        return loss


class SharedStep(Measuring):
    def shared(self, batch, stage):
        logits = self.model(batch["x"])
        loss = F.cross_entropy(logits, batch["y"])
        self.log(f"{stage}/loss", loss)
        return loss, logits

    def training_step(self, batch, index):
        return self.shared(batch, "train")[0]

    def validation_step(self, batch, index):
        _, logits = self.shared({**batch, "x": 5 * batch["x"]}, "val")
        self.log("val/accuracy", self.accuracy(logits, batch["y"]))

    def val_dataloader(self):
        return data(1)


class Manual(Module):
    """Two batches a step, by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.model(batch["x"]), batch["y"])
        self.manual_backward(loss / 2)
        self.log("train/loss", loss)
        if index % 2 == 1:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Row(NamedTuple):
    module: type[Module]
    trainer: dict = {}


ROWS = {
    "self(x)": Row(CallsItself),
    "self(x), two batches a step": Row(CallsItself, {"accumulate_grad_batches": 2}),
    "self(x), bf16-mixed": Row(CallsItself, {"precision": "bf16-mixed"}),
    "self.model(x)": Row(CallsSubmodule),
    "self.criterion": Row(Criterion),
    "loss inside self.model": Row(LossInside),
    "metric in training_step": Row(MetricInStep),
    "metric and self.log in forward": Row(MetricInForward),
    "metric and self.log in forward, two batches a step": Row(MetricInForward, {"accumulate_grad_batches": 2}),
    "self.body, self.head and a loose parameter": Row(BodyAndHead),
    "shared step, validation after every batch": Row(SharedStep, {"val_check_interval": 1}),
    "manual optimization": Row(Manual),
}


def data(batches=6):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(batches * SIZE, WIDTH, generator=generator)
    y = torch.randint(0, CLASSES, (batches * SIZE,), generator=generator)
    return DataLoader([{"x": a, "y": b} for a, b in zip(x, y, strict=True)], batch_size=SIZE)


class Diary(Callback):
    """What the user sees after every batch, and the reference of every optimizer step."""

    def __init__(self, guard=None):
        self.guard, self.batches, self.before = guard, [], None
        self.seen, self.r, self.references = [], [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.batches.append({k: v.double() if v.is_floating_point() else v for k, v in batch.items()})

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.before = {n: v.clone() for n, v in module.state_dict().items()}

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        metrics = {n: v.clone() for n, v in trainer.callback_metrics.items() if not n.startswith("stepguard/")}
        self.seen.append([metrics, states(module)])
        if self.before is not None:
            twin, batches = type(module)(), self.batches
            twin.load_state_dict(self.before)
            update = {n: (p - self.before[n]).detach().double() for n, p in module.named_parameters()}
            task = Task(twin, None, lambda m: [m.logits(batch) for batch in batches])
            self.references.append(reference_r(task, twin, update))
            self.r.append(self.guard.last.r if self.guard else None)
            self.batches, self.before = [], None


def states(module):
    metrics = [m for m in module.modules() if isinstance(m, MulticlassAccuracy)]
    return [[copy.deepcopy(m.metric_state), m.update_count] for m in metrics]


def fit(row, *guards):
    torch.manual_seed(0)
    module, diary = row.module(), Diary(*guards)
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_steps=3, callbacks=[*guards, diary], enable_model_summary=False, **{**settings, **row.trainer}
    )
    trainer.fit(module, data())
    user = {n: v for n, v in trainer.callback_metrics.items() if not n.startswith("stepguard/")}
    return diary, [diary.seen, user, module.state_dict(), torch.get_rng_state()]


@pytest.mark.parametrize("name", ROWS)
def test_r_is_right_and_nothing_logged_is_different(name):
    row = ROWS[name]
    _, plain = fit(row)
    diary, guarded = fit(row, StepGuard(action="observe"))
    assert len(diary.r) == 3 and guarded[1], "three steps, and something logged"
    assert diary.r == pytest.approx(diary.references, rel=0.05 if "precision" in row.trainer else 1e-4)
    torch.testing.assert_close(guarded, plain, rtol=0, atol=0)
