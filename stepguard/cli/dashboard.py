from __future__ import annotations

import argparse
import threading
import webbrowser
from pathlib import Path

from stepguard.cli.option_types import whole

DESCRIPTION = """\
Starts TensorBoard on a log folder, with the StepGuard tab in front: r and every
step beyond its target, learning rates, softmax headroom, events. It follows
runs that are still training. Ctrl-C ends it."""
EXAMPLES = """\
examples:
  stepguard dashboard                           the runs below runs/
  stepguard dashboard lightning_logs            those of Lightning
  stepguard dashboard runs/mine --port 7007     at http://localhost:7007
  stepguard dashboard runs --no-browser         only print where it is"""
SAMPLES = "scalars=100000,text=1000"
"""How much TensorBoard's own tabs keep of a curve; by default a hundredth of that."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard dashboard``."""
    parser = subparsers.add_parser(
        "dashboard",
        help="look at runs in TensorBoard, live or afterwards",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "logdir", nargs="?", type=Path, default=Path("runs"), metavar="LOGDIR", help="a run, or several (default: runs)"
    )
    add("--port", type=whole, metavar="N", help="where to serve (default: the first free one from 6006 on)")
    add("--no-browser", action="store_true", help="do not open a browser, only print the address")
    parser.set_defaults(run=lambda args: _run(parser, args))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if not args.logdir.is_dir():
        parser.error(f"there is no folder {args.logdir}; give the log_dir of a run, or one that holds several")
    try:
        url = _launch(args.logdir, args.port) + "#stepguard"
    except SystemExit as error:
        parser.error(str(error))
    print(f"StepGuard at {url}", flush=True)
    if not any(args.logdir.rglob("stepguard*.jsonl")):
        print(f"No records below {args.logdir} yet; the tab fills as soon as a run writes there.", flush=True)
    print("Ctrl-C ends it.", flush=True)
    if not args.no_browser:
        webbrowser.open(url)
    threading.Event().wait()
    return 0


def _launch(logdir: Path, port: int | None) -> str:
    """Serve in a thread of its own; the address.

    Raises:
        SystemExit: If that port cannot be had.
    """
    from tensorboard import default, program

    from stepguard.views.tensorboard.loader import StepGuardLoader

    plugins = default.get_plugins()
    if StepGuardLoader not in plugins:  # run from a folder that is not installed
        plugins.append(StepGuardLoader)
    board = program.TensorBoard(plugins=plugins)
    place = [] if port is None else ["--port", str(port)]
    board.configure(["stepguard", "--logdir", str(logdir), "--samples_per_plugin", SAMPLES, *place])
    try:
        url: str = board.launch()
    except program.TensorBoardServerException as error:
        raise SystemExit(f"{str(error).rstrip('.')}; choose another --port, or leave it out for a free one") from None
    return url
