"""A process that is killed, and a new one that goes on from the last checkpoint: as if nothing had happened."""

import json
import multiprocessing

import pytest
import torch
from killed_run import EVERY, STEPS, Kill, run

NEVER = Kill(-1, "")
KILLS = {
    "in a forward": Kill(17, "forward"),
    "while the optimizer moves parameters": Kill(31, "step"),
    "in a step that is clamped": Kill(38, "step"),
    "while a checkpoint is written": Kill(42, "checkpoint"),
    "at once after a checkpoint": Kill(49, "forward"),
}
WHOLE: dict[str, str] = {}


def process(*args):
    """Run it in a process of its own; how that ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch"])  # imported once, for all of them
    child = context.Process(target=run, args=args)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that nobody killed, for each cadence."""

    def folder(cadence):
        if cadence not in WHOLE:
            WHOLE[cadence] = tmp_path_factory.mktemp("whole")
            assert process(WHOLE[cadence], "whole", cadence, NEVER, None) == 0
        return WHOLE[cadence]

    return folder


def killed_and_resumed(folder, cadence, kill):
    assert process(folder, "killed", cadence, kill, None) == -9
    checkpoints = {int(p.stem.split("=")[1].split("-")[0]): p for p in (folder / "killed").glob("*.ckpt")}
    last = max(checkpoints)
    assert kill.step - EVERY <= last <= kill.step and len(checkpoints) == last // EVERY
    assert process(folder, "resumed", cadence, NEVER, checkpoints[last]) == 0
    return last


def readings(folder, name):
    """By the trainer's steps: the latest of the guard and of the monitor, but for what was timed."""
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [[{**r, "cost_share": None} if r else None for r in line] for line in lines]


def untimed(state):
    if isinstance(state, dict):
        return {k: untimed(v) for k, v in state.items() if k not in ("budget", "cost_share")}
    return state


@pytest.mark.parametrize("when", KILLS)
def test_all_is_as_if_nothing_had_happened(when, uninterrupted, tmp_path):
    whole = uninterrupted("every")
    last = killed_and_resumed(tmp_path, "every", KILLS[when])
    model, optimizer, states = torch.load(whole / "whole.pt")
    again_model, again_optimizer, again_states = torch.load(tmp_path / "resumed.pt")
    torch.testing.assert_close([again_model, again_optimizer], [model, optimizer], rtol=0, atol=0)
    assert untimed(again_states) == untimed(states)
    expected, found = readings(whole, "whole"), readings(tmp_path, "resumed")
    assert len(expected) == STEPS and found == expected[last:]
    assert sum(guard["scale"] < 1 for guard, _ in expected) >= 4 and expected[-1][1]["curing"]


def test_when_calm_steps_are_measured_depends_on_time_but_the_model_does_not(uninterrupted, tmp_path):
    whole = uninterrupted("auto")
    last = killed_and_resumed(tmp_path, "auto", KILLS["in a step that is clamped"])
    model, optimizer, states = torch.load(whole / "whole.pt")
    again_model, again_optimizer, again_states = torch.load(tmp_path / "resumed.pt")
    torch.testing.assert_close([again_model, again_optimizer], [model, optimizer], rtol=0, atol=0)
    assert again_states["guard"]["calm"] == states["guard"]["calm"]
    assert untimed(again_states["monitor"]) == untimed(states["monitor"])
    clamped = [
        {guard["step"]: guard for guard, _ in lines if guard["scale"] < 1 and guard["step"] >= last}
        for lines in (readings(whole, "whole"), readings(tmp_path, "resumed"))
    ]
    assert clamped[0] == clamped[1] and len(clamped[0]) >= 2
