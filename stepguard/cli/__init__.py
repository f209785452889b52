"""The ``stepguard`` command: argument parsing and one file a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stepguard import __version__
from stepguard.cli import dashboard, demo, report, watch

COMMANDS = (demo, dashboard, watch, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 not understood, 130 interrupted.

    Each command's file adds its own parser and loads what it needs only when it runs, so that
    ``--help`` answers at once.
    """
    parser = argparse.ArgumentParser(
        prog="stepguard",
        description="Tells at every optimizer step whether a softmax model is about to break,\n"
        "and keeps the unsafe steps from happening.",
        epilog="examples:\n  stepguard demo             watch a model break, and the same model saved\n"
        "  stepguard demo --help      the two ways in which it can\n"
        "  stepguard dashboard runs   look at runs in TensorBoard, live or afterwards\n"
        "  stepguard watch runs       follow a run from another terminal\n"
        "  stepguard report runs      what went wrong in a run, where and why",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stepguard {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    args = parser.parse_args(demo.with_default(list(sys.argv[1:] if argv is None else argv)))
    if "run" not in args:
        parser.print_help()
        return 2
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return 130
    return code
