from __future__ import annotations

import argparse

from stepguard.cli.grokking import options as grokking
from stepguard.cli.spike import options as spike

DEMOS = (spike, grokking)
DESCRIPTION = """\
Two ways for a softmax model to break, each beside the run that does not: live
in the terminal, and left behind as a table, a picture and TensorBoard logs.

spike      The steps get too long. From step 50 on the learning rate is 10,000
           times too large; the guard shortens what would destroy the model.
grokking   The logits get too large. A model that knows its training set by
           heart only scales them up, and learns nothing more; perpGrad takes
           the scaling out of the gradient, and the model understands."""
EXAMPLES = """\
examples:
  stepguard demo                  the spike, some seconds on two cores
  stepguard demo grokking         under a minute
  stepguard demo grokking --help  what can be changed about it"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard demo`` and one command below it for each demo."""
    parser = subparsers.add_parser(
        "demo",
        help="watch a model break, and the same model saved",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demos = parser.add_subparsers(title="demos", metavar="DEMO")
    for demo in DEMOS:
        demo.add_parser(demos)


def with_default(argv: list[str]) -> list[str]:
    """The spike is the demo of those who name none.

    Example:
        >>> with_default(["demo", "--steps", "100"])
        ['demo', 'spike', '--steps', '100']
    """
    named = argv[1:2] and (argv[1] in ("-h", "--help") or not argv[1].startswith("-"))
    return argv if argv[:1] != ["demo"] or named else ["demo", "spike", *argv[1:]]
