from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stepguard.views.report.told import Told

DESCRIPTION = """\
The post-mortem of runs: what happened, at which step it began, and why; where it
came from, what the guard did, what other targets would have done, how far the
learning rate could go, how near the softmax came to collapse, and what to do. It
only reads what the runs have written, the stepguard.jsonl in their log folders."""
EXAMPLES = """\
examples:
  stepguard report runs/one                       in the terminal
  stepguard report runs --run seed-3              one of several runs
  stepguard report runs --html report.html        one file with pictures, for a browser or a mail
  stepguard report runs --markdown - | less       for an issue, or a notebook
  stepguard report runs --json | jq .runs[].cause for a script
  stepguard report runs --check                   exit status 1 if one was spoiled, for CI"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``stepguard report``."""
    parser = subparsers.add_parser(
        "report",
        help="what went wrong in a run, where and why",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("log_dir", type=Path, metavar="LOGDIR", help="the log_dir of a run, or a folder above several")
    add("--run", dest="only", metavar="NAME", help="only this one of the runs in LOGDIR")
    add("--html", metavar="FILE", help="write it as one HTML file with pictures; - is the standard output")
    add("--markdown", metavar="FILE", help="write it as Markdown; - is the standard output")
    add("--json", action="store_true", help="print it as JSON instead")
    add("--check", action="store_true", help="exit with status 1 if something spoiled a run")
    parser.set_defaults(run=lambda args: _report(parser, args))


def _report(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if [args.html, args.markdown].count("-") + args.json > 1:
        parser.error(
            "only one of --html -, --markdown - and --json can have the standard output; give the others a file"
        )
    told = _told(parser, args)
    for name, file in (("html", args.html), ("markdown", args.markdown)):
        if file is not None:
            _write(parser, name, file, told)
    if args.json:
        from stepguard.views.report.data import as_json

        _print(as_json(told) + "\n")
    elif args.html is None and args.markdown is None:
        from rich.console import Console

        from stepguard.views.report.terminal import show

        show(Console(), told)
    return 1 if args.check and any(each.post.spoiled for each in told) else 0


def _told(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Told]:
    from stepguard.views.report.reading import read

    try:
        return read(args.log_dir, args.only, lambda line: print(line, file=sys.stderr, flush=True))
    except (FileNotFoundError, LookupError) as error:
        parser.error(str(error))


def _write(parser: argparse.ArgumentParser, name: str, file: str, told: list[Told]) -> None:
    if name == "html":
        from stepguard.views.report.page import page as made
    else:
        from stepguard.views.report.markdown import markdown as made
    text = made(told)
    if file == "-":
        _print(text)
        return
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        parser.error(f"--{name}: {file} cannot be written ({error.strerror}); choose another file")
    for each in told:
        print(f"{each.post.about.name}: {each.post.verdict}", file=sys.stderr)
    print(f"{file}: {len(text.encode()) / 1000:,.0f} kB", file=sys.stderr)


def _print(text: str) -> None:
    try:
        sys.stdout.buffer.write(text.encode())  # in UTF-8, as the page says that it is, whatever the terminal takes
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; Python itself would complain when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
