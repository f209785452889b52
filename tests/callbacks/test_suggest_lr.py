"""The suggested learning rate in Lightning, and the forecast that knows the trainer's schedule."""

import itertools

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from test_lightning import Module, TwoOptimizers, data, heard, trainer
from test_lightning import pytestmark as pytestmark
from torch.optim import lr_scheduler

from stepguard.callbacks import StepGuard, SuggestLR
from stepguard.callbacks.lightning.schedule import schedule_of
from stepguard.guard import rates_from


class Scheduled(Module):
    """Remembers the learning rate of each step."""

    def __init__(self, make=None, **config):
        super().__init__()
        self.make, self.config, self.rates, self.foreseen = make, config, [], []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.make is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), **self.config}}

    def on_train_start(self):
        ahead = rates_from(schedule_of(self.trainer), self.trainer.optimizers[0], 0)
        self.foreseen = list(itertools.islice(ahead, 8))

    def on_train_batch_start(self, batch, index):
        self.rates.append(self.optimizers().param_groups[0]["lr"])


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("order", [(SuggestLR, StepGuard), (StepGuard, SuggestLR)])
def test_to_ask_changes_nothing(tmp_path, order):
    runs = []
    for callbacks in ((StepGuard,), order):
        torch.manual_seed(0)
        module = Scheduled()
        made = [callback() for callback in callbacks]
        trainer(tmp_path, *made).fit(module, data())
        runs.append((weights(module), made))
    assert all(torch.equal(p, q) for p, q in zip(runs[0][0], runs[1][0], strict=True))
    (asked,) = [c for c in runs[1][1] if isinstance(c, SuggestLR)]
    assert 0 < asked.suggestion.lr < asked.suggestion.settled


@pytest.mark.parametrize(
    "make",
    [
        None,
        lambda o: lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 4, 1.0)),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=7),
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    ],
    ids=["none", "warm-up", "one cycle", "step"],
)
def test_the_rate_that_is_set_is_the_schedules_largest(tmp_path, make):
    plain, module, suggest = Scheduled(make, interval="step"), Scheduled(make, interval="step"), SuggestLR(update=True)
    trainer(tmp_path).fit(plain, data())
    trainer(tmp_path, suggest).fit(module, data())
    assert len(module.rates) == 6
    ratio = module.rates[0] / plain.rates[0]
    assert module.rates == pytest.approx([ratio * rate for rate in plain.rates])
    peak = 0.4 if max(plain.rates) > 0.1 else 0.1
    assert ratio * peak == pytest.approx(suggest.suggestion.lr)


@pytest.mark.parametrize(
    "config", [{"interval": "epoch"}, {"interval": "step", "frequency": 2}, {"interval": "step"}], ids=str
)
def test_schedules_of_every_interval_are_foreseen(tmp_path, config):
    module = Scheduled(lambda o: lr_scheduler.ExponentialLR(o, 0.5), **config)
    trainer(tmp_path, max_epochs=2, limit_train_batches=4).fit(module, data())
    assert len(module.rates) == 8 and len(set(module.rates)) > 1
    assert module.foreseen == pytest.approx(module.rates)


def test_a_schedule_that_will_come_too_high_is_foretold(tmp_path, caplog):
    module = Scheduled(lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.5**step), interval="step")
    guard = StepGuard(target=5.0, cadence="every")
    told = heard(guard).events
    trainer(tmp_path, guard, max_epochs=4, limit_train_batches=5).fit(module, data())
    forecasts = [e for e in told if e.kind == "forecast"]
    first = next(e.step for e in told if e.kind == "clamp")
    assert forecasts and forecasts[0].step < first
    assert abs(int(forecasts[0].message.split("about step ")[1].split(",")[0]) - first) <= 4


def test_limit_and_calm(tmp_path):
    runs = {}
    for to in ("limit", "calm"):
        module = Scheduled(lambda o: lr_scheduler.LambdaLR(o, lambda step: 1e4 if step >= 33 else 1.0), interval="step")
        guard = StepGuard(clamp_to=to, cadence="every")
        trainer(tmp_path, guard, max_epochs=6).fit(module, data())
        runs[to] = guard.last
    assert runs["limit"].scale * runs["limit"].r == pytest.approx(1.0)
    assert runs["calm"].scale == pytest.approx(1e-4)


def test_what_it_cannot_answer(tmp_path):
    with pytest.raises(MisconfigurationException, match="looks at one optimizer in automatic optimization, here are 2"):
        trainer(tmp_path, SuggestLR()).fit(TwoOptimizers(), data())

    class Silent(Scheduled):
        def training_step(self, batch, index):
            return None

    with pytest.raises(MisconfigurationException, match="SuggestLR: training_step must return a loss"):
        trainer(tmp_path, SuggestLR()).fit(Silent(), data())
