"""Every precision of Lightning that a CPU has: r is that of a float64 model, and no skipped step is measured."""

from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from test_lightning import Module, data, heard, trainer
from test_lightning import pytestmark as pytestmark
from test_lightning_optimizers import GAN
from test_lightning_stages import Beside
from test_perp_grad_callback import Observed

from stepguard.callbacks import PerpGrad, SoftmaxCollapseMonitor, StepGuard


class Row(NamedTuple):
    trainer: dict[str, Any]
    dtype: torch.dtype = torch.float32
    """Of the parameters."""
    error: float = 1e-4
    """Of r, relative."""
    scale: float | None = None
    """Of a GradScaler, to begin with."""


PRECISIONS = {
    "32-true": Row({"precision": "32-true"}),
    "64-true": Row({"precision": "64-true"}, torch.float64),
    "bf16-mixed": Row({"precision": "bf16-mixed"}),
    "16-mixed with a GradScaler": Row({}, scale=2.0**10),
    "bf16-true": Row({"precision": "bf16-true"}, torch.bfloat16, 0.03),
    "16-true": Row({"precision": "16-true"}, torch.float16, 0.03),
}


def settings_of(row):
    if row.scale is None:
        return row.trainer
    # Lightning asks for a GPU if only told "16-mixed"; a plugin of one's own may be for the CPU.
    scaler = torch.amp.GradScaler("cpu", init_scale=row.scale)
    return {**row.trainer, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("name", PRECISIONS)
def test_r_is_that_of_a_float64_model(name, tmp_path):
    row, guard = PRECISIONS[name], StepGuard(action="observe", strict=True)
    beside = Beside(guard)
    trainer(tmp_path, guard, beside, **settings_of(row)).fit(Module(lr=0.5), data())
    assert len(beside.r) == 6 and beside.dtypes == {row.dtype}
    assert beside.r == pytest.approx(beside.made, rel=row.error)


@pytest.mark.parametrize("name", PRECISIONS)
def test_steps_are_clamped_at_the_target(name, tmp_path):
    row, guard = PRECISIONS[name], StepGuard(target=0.2, strict=True)
    beside = Beside(guard)
    trainer(tmp_path, guard, beside, **settings_of(row)).fit(Module(lr=10.0), data())
    # Half precision cannot stand wherever a step of that length would end.
    assert len(beside.made) == 6 and max(beside.made) == pytest.approx(0.2, rel=max(10 * row.error, 1e-3) / 3)


@pytest.mark.parametrize("name", PRECISIONS)
def test_observing_is_invisible(name, tmp_path):
    row, results = PRECISIONS[name], []
    for callbacks in ([], [StepGuard(action="observe", strict=True), SoftmaxCollapseMonitor(cadence=1)]):
        torch.manual_seed(0)
        module = Module(lr=1.0)
        run = trainer(tmp_path, *callbacks, **settings_of(row))
        run.fit(module, data())
        scaler = getattr(run.precision_plugin, "scaler", None)
        results.append([module.state_dict(), run.optimizers[0].state_dict(), scaler and scaler.state_dict()])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


FOUND_INF = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


@pytest.mark.parametrize("action", ["observe", "clamp"])
@pytest.mark.parametrize("name", FOUND_INF)
def test_steps_that_the_scaler_skips_are_skipped_steps(name, action, tmp_path):
    module, guard, monitor = Module(), StepGuard(action=action, target=0.2), SoftmaxCollapseMonitor(cadence=1)
    module.configure_optimizers = lambda: FOUND_INF[name](module.parameters())
    seen, beside = heard(guard), Beside(guard)
    run = trainer(tmp_path, guard, monitor, beside, max_epochs=2, **settings_of(Row({}, scale=2.0**20)))
    run.fit(module, data())
    skipped = [event.step for event in seen.events if event.kind == "skipped"]
    readings = [reading.step for reading in seen.readings]
    assert skipped[0] == 0 and len(skipped) < 6  # the scale is halved until it is small enough
    assert sorted(skipped + readings) == [*range(12)] and len(beside.made) == len(readings)
    assert {event.kind for event in seen.events} <= {"skipped", "found", "clamp", "breach", "culprit"}
    assert guard.guards[0].step == monitor.monitors[0].step == run.global_step == 12


def test_each_of_several_optimizers_counts_its_own_skipped_steps(tmp_path):
    class Explodes(GAN):
        """The generator's gradient is inf in the third batch."""

        def believed(self, noise):
            return super().believed(noise) * (float("inf") if self.guard.guards[1].step == 2 else 1.0)

        def step(self, number, *args, **kwargs):
            self.optimizers()[number].step()

    module, guard = Explodes(), StepGuard(action="observe")
    module.guard, seen = guard, heard(guard)
    trainer(tmp_path, guard, **settings_of(Row({}, scale=2.0**10))).fit(module, data())
    assert [event.message for event in seen.events if event.kind == "skipped"] == [
        "optimizer 1, step 2: the optimizer moved nothing"
    ]
    assert [g.step for g in guard.guards] == [6, 6] and guard.guards[1].last.step == 5


@pytest.mark.parametrize("name", PRECISIONS)
def test_perp_grad(name, tmp_path):
    row, module = PRECISIONS[name], Observed()
    trainer(tmp_path, PerpGrad(), **settings_of(row)).fit(module, data())
    assert len(module.given.alignments) == 6
    assert max(module.given.alignments) < (1e-4 if row.error < 0.01 else 0.02)
