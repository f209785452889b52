from __future__ import annotations

import argparse
from pathlib import Path

from stepguard.cli.option_types import positive

DESCRIPTION = """\
Follows a run from another terminal, while it goes on or when it is over: r with
its limit over time, the latest numbers, how near the softmax is to collapse,
the latest events, and whether it still runs. It only reads what the run has
written, the stepguard.jsonl in its log folder. Ctrl-C ends it, and nothing else."""
EXAMPLES = """\
examples:
  stepguard watch runs                    the run that wrote last, below a table of all
  stepguard watch runs --run seed-3       one of them
  stepguard watch runs --once             a single look, for a script or a mail
  stepguard watch runs | tee events.txt   without a terminal: lines, events as they come"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard watch``."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a run from another terminal",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("log_dir", type=Path, metavar="LOGDIR", help="the log_dir of a run, or a folder above several")
    parser.add_argument("--run", dest="only", metavar="NAME", help="only this one of the runs in LOGDIR")
    parser.add_argument("--once", action="store_true", help="show it once and end")
    parser.add_argument(
        "--every", type=positive, default=1.0, metavar="SECONDS", help="from one look to the next (default: 1)"
    )
    parser.set_defaults(run=lambda args: _watch(parser, args))


def _watch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from rich.console import Console

    from stepguard.views.watching import Watching, show, watch

    try:
        watching = Watching(args.log_dir, args.only)
    except (FileNotFoundError, LookupError) as error:
        parser.error(str(error))
    console = Console()
    if args.once:
        show(console, watching)
    else:
        watch(console, watching, args.every)
    return 0
