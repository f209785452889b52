"""Runs with records: real ones, and made up ones where only their number matters."""

import json
import math

import torch
import torch.nn.functional as F

import stepguard
from stepguard.records import JsonLines, Reading


def train(folder, action, steps=60, spike=range(20, 30)):
    """A small model whose learning rate is a thousand times too large for a while."""
    torch.manual_seed(0)
    model, lines = (
        torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5)),
        JsonLines(folder),
    )
    x = torch.randn(64, 12)
    y = (x @ torch.randn(12, 5)).argmax(-1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with (
        stepguard.attach(model, optimizer, action=action, cadence="every", recorders=[lines]),
        stepguard.monitor_collapse(model, optimizer, on_warning=None, cadence=5, recorders=[lines]),
    ):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 3.0 if step in spike else 3e-3
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    lines.close()


def made_up(step, r=0.3, scale=1.0):
    return Reading(
        step, r=r, tau=0.1, rho=0.1 / r, spread=r * math.pi, scale=scale, lr=0.1, lr_applied=scale * 0.1, target=1.0
    )


def many(folder, count, beyond):
    """So many readings, r above 1 at the steps ``beyond``; written at once."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"kind": "reading", "time": 1.0, **made_up(0)._asdict()})
    before, after = line.replace('"step": 0', '"step": %d').replace('"r": 0.3', '"r": %.17g').split('"tau"')
    with open(folder / "stepguard.jsonl", "w") as file:
        file.write('{"kind": "start", "time": 1.0, "schema": 1}\n')
        for step in range(count):
            r = 2 + step % 7 if step in beyond else 0.3 + 0.1 * math.sin(step)
            file.write(f'{before % (step, r)}"tau"{after}\n')
