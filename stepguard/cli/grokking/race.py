from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from stepguard.cli.grokking.options import Plan
from stepguard.cli.grokking.training import Frame, PerpGrad, Run, train
from stepguard.cli.together import folder_name, one_thread, say_where, train_together
from stepguard.records import Recorder, TensorBoard
from stepguard.views.console import watch
from stepguard.views.grokking.look import GROKKING_LOOK
from stepguard.views.grokking.milestones import milestones
from stepguard.views.grokking.picture import save_picture
from stepguard.views.grokking.summary import closing_table, outcome

Histories = dict[str, list[Frame]]
"""Frames by run, then by epoch."""


def race(plan: Plan, folder: Path) -> int:
    """Train with and without perpGrad, show both, and leave a table, a picture and logs; return the exit code."""
    console = Console(highlight=False)
    histories: Histories = {name: [] for name in _runs(plan)}
    stopped = False
    total = len(histories) * plan.epochs
    with (
        one_thread(),
        warnings.catch_warnings(),
        watch(console, _headline(plan), list(histories), GROKKING_LOOK, total) as view,
    ):
        # What the monitor warns of stands among the events.
        warnings.filterwarnings("ignore", message="stepguard: ")
        view.stage(f"seed {plan.seed}")
        try:
            _train(plan, folder, histories, view.frame)
        except KeyboardInterrupt:
            stopped = True
    _close(plan, folder, histories, console)
    return 130 if stopped else 0


def _runs(plan: Plan) -> dict[str, Run]:
    plain = Run(plan.modulus, plan.seed, plan.lr, plan.epochs, loss_dtype=getattr(torch, plan.loss_dtype))
    return {"AdamW": plain, "AdamW + perpGrad": plain._replace(perp_grad=PerpGrad(plan.over, plan.restore_norm))}


def _train(plan: Plan, folder: Path, histories: Histories, show: Callable[[str, Frame], None]) -> None:
    def begin(run: Run) -> Callable[[tuple[Recorder, ...]], Iterator[Frame]]:
        return lambda recorders: train(run._replace(recorders=recorders))

    def take(name: str, frame: Frame, log: TensorBoard) -> None:
        reached = tuple(milestones(histories[name], frame))
        for event in reached:
            log.event(event)
        frame = frame._replace(events=(*frame.events, *reached))
        histories[name].append(frame)
        scalars = {
            "train/loss": frame.loss,
            "train/accuracy": frame.train_accuracy,
            "test/accuracy": frame.test_accuracy,
        }
        log.scalars(scalars, frame.step)
        show(name, frame)

    runs = {name: begin(run) for name, run in _runs(plan).items()}
    train_together(runs, lambda name: folder / folder_name(name), take)


def _close(plan: Plan, folder: Path, histories: Histories, console: Console) -> None:
    """Say what became of the runs, as far as they got."""
    epochs = min(map(len, histories.values()))
    if not epochs:
        console.print("Stopped before the end of the first epoch.")
        return
    caption = "" if epochs == plan.epochs else f"Stopped after {epochs} of {plan.epochs} epochs."
    console.print(f"\n{_headline(plan)}", markup=False)
    console.print(closing_table({name: outcome(frames) for name, frames in histories.items()}, caption))
    picture = folder / "grokking.png"
    save_picture(picture, histories, title=_headline(plan))
    say_where(console, folder, picture)


def _headline(plan: Plan) -> str:
    loss = "" if plan.loss_dtype == "float32" else f", {plan.loss_dtype} loss"
    return f"addition modulo {plan.modulus} from 40% of the pairs, lr {plan.lr:g}{loss}"
