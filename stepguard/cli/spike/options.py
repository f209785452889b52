from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepguard.cli.option_help import add_log_dir, adder, fresh_folder, refuse_without
from stepguard.cli.option_types import LARGEST_RATE, count, positive, seed, whole

if TYPE_CHECKING:
    from stepguard.guard import Action, ClampTo


DESCRIPTION = """\
Real data, a real collapse: one model on handwritten digits, trained four times
from the same seed, side by side. From step 50 on the learning rate is 10,000
times too large. One run takes these steps as they come, one clips its gradients
at norm 1, one is guarded; a run without the spike shows what would have been.
Leaves a table, a picture and TensorBoard logs."""
EXAMPLES = """\
examples:
  stepguard demo spike                               some seconds on two cores
  stepguard demo spike --seeds 5                     medians of five seeds
  stepguard demo spike --model transformer --for 1   a spike of one step
  stepguard demo spike --action drive --target 0.5   every step at r = 0.5"""


class Setup(NamedTuple):
    """What a model is trained with unless told otherwise."""

    lr: float
    batch_size: int | None
    in_order: bool
    """The data in the file's order instead of a stratified split for each seed."""


# The keys are those of stepguard.cli.spike.models, which is not imported here: it loads torch.
SETUPS = {
    "mlp": Setup(1e-2, 64, in_order=False),  # the best of the paper's three rates where there is no spike
    "mlp-ln": Setup(0.015, None, in_order=True),
    "transformer": Setup(0.015, None, in_order=True),
    "cnn-bn": Setup(0.015, None, in_order=True),
}
ACTIONS = ("clamp", "drive", "observe")


class Plan(NamedTuple):
    """Everything that was chosen about the demo, checked."""

    model: str
    setup: Setup
    lr: float
    steps: int
    factor: float
    start: int
    length: int | None
    seeds: tuple[int, ...]
    action: Action
    target: float
    clamp_to: ClampTo
    log_dir: Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard demo spike``."""
    parser = subparsers.add_parser(
        "spike",
        help="a learning rate that jumps 10,000-fold, taken, clipped and guarded",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)
    parser.set_defaults(run=lambda args: _run(args, parser))


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    parser.add_argument("--model", choices=SETUPS, default="mlp", help="what is trained (default: mlp)")
    add("--lr", positive, None, "RATE", "base learning rate (default: 0.01 for mlp, 0.015 for the others)")
    add("--steps", count, 200, "N", "steps of each run")
    add("--spike", positive, 10_000, "FACTOR", "what the learning rate is multiplied by")
    add("--at", whole, 50, "STEP", "step at which the spike begins, counted from 0")
    add("--for", count, None, "STEPS", "how long the spike lasts (default: to the end)")
    add("--seed", seed, 0, "SEED", "first seed")
    add("--seeds", count, 1, "N", "how many seeds, one after the other; with several the table shows medians")
    parser.add_argument(
        "--action",
        choices=ACTIONS,
        default="clamp",
        help="clamp: shorten steps beyond the target; drive: set each step to it; observe: only watch (default: clamp)",
    )
    parser.add_argument(
        "--clamp-to",
        choices=("calm", "limit"),
        default="calm",
        help="calm: shorten a step to what it would be without the spike; limit: to the target alone (default: calm)",
    )
    add("--target", positive, 1.0, "R", "limit on r, the length of a step against the radius that is safe for it")
    add_log_dir(parser)


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        plan = plan_of(args)
    except ValueError as error:
        parser.error(str(error))
    refuse_without(parser, {"sklearn": "scikit-learn", "matplotlib": "matplotlib"})
    # Imported here: torch, scikit-learn and rich take seconds, and --help should not.
    from stepguard.cli.spike.side_by_side import side_by_side

    return side_by_side(plan, fresh_folder(parser, plan.log_dir))


def plan_of(args: argparse.Namespace) -> Plan:
    """The options as one checked plan.

    Raises:
        ValueError: If they do not fit together.
    """
    setup = SETUPS[args.model]
    lr = setup.lr if args.lr is None else args.lr
    if args.at >= args.steps:
        raise ValueError(
            f"--at {args.at}: the run ends after {args.steps} steps and would never meet the spike. "
            f"Choose --at below {args.steps}, or more --steps"
        )
    if lr * max(args.spike, 1.0) > LARGEST_RATE:
        raise ValueError(f"--lr {lr:g} times --spike {args.spike:g} is too large: Adam can take {LARGEST_RATE:g}")
    seeds = tuple(range(args.seed, args.seed + args.seeds))
    length = vars(args)["for"]
    return Plan(
        args.model,
        setup,
        lr,
        args.steps,
        args.spike,
        args.at,
        length,
        seeds,
        args.action,
        args.target,
        args.clamp_to,
        args.log_dir,
    )
