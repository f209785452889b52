from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from stepguard.cli.spike.digits import digits_in_order, digits_stratified
from stepguard.cli.spike.models import MODELS
from stepguard.cli.spike.options import Plan
from stepguard.cli.spike.training import Frame, Run, Spike, train
from stepguard.cli.together import folder_name, one_thread, say_where, train_together
from stepguard.records import Recorder, TensorBoard
from stepguard.views.console import watch
from stepguard.views.frame import r_taken
from stepguard.views.spike.look import spike_look
from stepguard.views.spike.picture import Window, save_picture
from stepguard.views.spike.summary import closing_table, median_outcome, outcome

Histories = dict[str, list[list[Frame]]]
"""Frames by run, then by seed, then by step."""


def side_by_side(plan: Plan, folder: Path) -> int:
    """Train the four runs, show them, and leave a table, a picture and logs; return the exit code."""
    console = Console(highlight=False)
    names = list(_runs(plan, plan.seeds[0]))
    histories: Histories = {name: [] for name in names}
    stopped = False
    total = len(names) * plan.steps * len(plan.seeds)
    with one_thread(), watch(console, _headline(plan), names, spike_look(plan.target), total) as view:
        try:
            for seed in plan.seeds:
                view.stage(f"seed {seed}")
                for frames in histories.values():
                    frames.append([])
                _train(plan, seed, folder, histories, view.frame)
        except KeyboardInterrupt:
            stopped = True
    _close(plan, folder, histories, console)
    return 130 if stopped else 0


def _runs(plan: Plan, seed: int) -> dict[str, Run]:
    """The four runs, which differ in what hits them and what protects them alone."""
    plain = Run(
        model=MODELS[plan.model],
        data=digits_in_order() if plan.setup.in_order else digits_stratified(seed),
        seed=seed,
        lr=plan.lr,
        steps=plan.steps,
        batch_size=plan.setup.batch_size,
        spike=Spike(plan.factor, plan.start, plan.length),
        target=plan.target,
        clamp_to=plan.clamp_to,
    )
    return {
        "no spike": plain._replace(spike=None),
        "plain": plain,
        "clipped": plain._replace(clip=1.0),
        "observed" if plan.action == "observe" else "guarded": plain._replace(action=plan.action),
    }


def _train(plan: Plan, seed: int, folder: Path, histories: Histories, show: Callable[[str, Frame], None]) -> None:
    def begin(run: Run) -> Callable[[tuple[Recorder, ...]], Iterator[Frame]]:
        return lambda recorders: train(run._replace(recorders=recorders))

    def take(name: str, frame: Frame, log: TensorBoard) -> None:
        histories[name][-1].append(frame)
        scalars = {"train/loss": frame.loss, "train/lr": frame.lr, "test/accuracy": frame.accuracy}
        if frame.reading:
            scalars["train/r_taken"] = r_taken(frame)
        log.scalars(scalars, frame.step)
        show(name, frame)

    last = f"seed-{seed}" if len(plan.seeds) > 1 else ""
    runs = {name: begin(run) for name, run in _runs(plan, seed).items()}
    train_together(runs, lambda name: folder / folder_name(name) / last, take)


def _close(plan: Plan, folder: Path, histories: Histories, console: Console) -> None:
    """Say what became of the runs, as far as they got."""
    # Seeds that were cut short would pull a median aside; one alone is shown as far as it went.
    done = [i for i, frames in enumerate(histories["plain"]) if len(frames) == plan.steps]
    if not done and not any(histories["plain"]):
        console.print("Stopped before the first step.")
        return
    shown = {name: [seeds[i] for i in done] if done else seeds[:1] for name, seeds in histories.items()}
    rows = {name: median_outcome([outcome(s, plan.start) for s in seeds]) for name, seeds in shown.items()}
    console.print(f"\n{_headline(plan)}", markup=False)
    console.print(closing_table(rows, _caption(plan, len(done), len(shown["plain"][0]))))
    stop = plan.steps if plan.length is None else plan.start + plan.length
    picture = folder / "demo.png"
    save_picture(
        picture, shown, title=_headline(plan), target=plan.target, spike=Window(plan.start, min(stop, plan.steps))
    )
    say_where(console, folder, picture)


def _headline(plan: Plan) -> str:
    until = "to the end" if plan.length is None else f"for {plan.length} steps" if plan.length > 1 else "for one step"
    spike = f"x{plan.factor:,g} from step {plan.start} {until}"
    action = f"clamp to {plan.clamp_to}" if plan.action == "clamp" else plan.action
    return f"{plan.model} on digits, lr {plan.lr:g} {spike}; {action}, r = {plan.target:g}"


def _caption(plan: Plan, done: int, steps: int) -> str:
    if not done:
        return f"Stopped after {steps} of {plan.steps} steps."
    text = f"Medians over {done} seeds; r is the largest of all." if done > 1 else ""
    return text if done == len(plan.seeds) else f"{text} Stopped after {done} of {len(plan.seeds)} seeds.".strip()
