from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stepguard.cli.option_help import add_log_dir, adder, fresh_folder, refuse_without
from stepguard.cli.option_types import count, rate, seed

if TYPE_CHECKING:
    from typing import Literal

DESCRIPTION = """\
A small network learns addition modulo 113 from 40% of all pairs of numbers,
twice from the same seed, side by side. With AdamW it knows the training pairs
by heart after some 50 epochs, and from then on only scales its logits up: the
loss falls, nothing is learned, and in the end the softmax has no digits left to
learn with. perpGrad takes that scaling out of every gradient; the same network
then finds out how to add, and is right about the pairs it has never seen.
Leaves a table, a picture and TensorBoard logs."""
EXAMPLES = """\
examples:
  stepguard demo grokking                     under a minute on one core
  stepguard demo grokking --over all --no-restore-norm
                                              perpGrad as in the paper's
                                              equation 12
  stepguard demo grokking --loss-dtype float16 --epochs 300
                                              the collapse itself, which comes
                                              early in half precision"""
DTYPES = ("float32", "float16", "bfloat16", "float64")


class Plan(NamedTuple):
    """Everything that was chosen about the demo, checked."""

    epochs: int
    lr: float
    seed: int
    over: Literal["tensor", "all"]
    restore_norm: bool
    loss_dtype: str
    log_dir: Path
    modulus: int = 113


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard demo grokking``."""
    parser = subparsers.add_parser(
        "grokking",
        help="a network that learns by heart, and one that understands",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser)
    parser.set_defaults(run=lambda args: _run(args, parser))


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = adder(parser)
    add("--epochs", count, 160, "N", "epochs of each run, of one full-batch step each")
    add("--lr", rate, 0.01, "RATE", "learning rate of AdamW")
    add("--seed", seed, 42, "SEED", "draws the training pairs and the first weights")
    parser.add_argument(
        "--over",
        choices=("tensor", "all"),
        default="tensor",
        help="perpGrad makes each tensor's gradient perpendicular to it, or the whole one to all (default: tensor)",
    )
    parser.add_argument(
        "--no-restore-norm",
        dest="restore_norm",
        action="store_false",
        help="leave the gradient as short as perpGrad makes it, instead of as long as it was",
    )
    parser.add_argument(
        "--loss-dtype",
        choices=DTYPES,
        default="float32",
        help="what the loss takes its softmax in; the coarser, the earlier it collapses (default: float32)",
    )
    add_log_dir(parser)


def _run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    refuse_without(parser, {"matplotlib": "matplotlib"})
    # Imported here: torch and rich take seconds, and --help should not.
    from stepguard.cli.grokking.race import race

    plan = plan_of(args)
    return race(plan, fresh_folder(parser, plan.log_dir))


def plan_of(args: argparse.Namespace) -> Plan:
    """The options as one plan."""
    return Plan(args.epochs, args.lr, args.seed, args.over, args.restore_norm, args.loss_dtype, args.log_dir)
