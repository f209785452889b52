"""Writes docs/compatibility.md: what tests hold about trainers, ranks, compilers and faults, in their own words.

PYTHONPATH=tests python -m compatibility
"""

import re
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "compatibility.md"
SECTIONS = {
    "Lightning": [
        "callbacks/test_lightning.py",
        "callbacks/test_lightning_stages.py",
        "callbacks/test_lightning_precision.py",
        "callbacks/test_lightning_optimizers.py",
        "callbacks/test_lightning_names.py",
        "callbacks/test_lightning_cli.py",
        "callbacks/test_killed.py",
        "callbacks/test_lightning_records.py",
    ],
    "The Trainer of Hugging Face": [
        "callbacks/test_transformers.py",
        "callbacks/test_transformers_steps.py",
        "callbacks/test_transformers_collapse.py",
        "callbacks/test_transformers_perp_grad.py",
        "callbacks/test_transformers_records.py",
        "callbacks/test_accelerate.py",
    ],
    "Several processes": [
        "guard/test_ranks.py",
        "guard/test_sharded.py",
        "geometry/test_perp_grad_sharded.py",
        "callbacks/test_several_ranks.py",
    ],
    "torch.compile": ["guard/test_compiled.py"],
    "When something goes wrong": [
        "faults/test_failing_measurements.py",
        "faults/test_not_finite.py",
        "faults/test_interrupts.py",
        "faults/test_full_disk.py",
        "faults/test_guard_threads.py",
        "faults/test_guards_together.py",
    ],
}
PACKAGES = ["torch", "lightning", "transformers", "accelerate"]
HEAD = """\
# In which trainers, on which ranks, after which faults

Each line is a test, in the words of its name, with what it was run for. Models and training steps have
[a page of their own](models.md), and so have [optimizers](optimizers.md).

This page is written by `PYTHONPATH=tests python -m compatibility`, which runs the tests, here on a CPU with
{versions}; one of them holds that no line is missing. No GPU has been tried.
"""


_NO_NAME = re.compile(r"(-?([a-z_]+[0-9]+|[0-9.]+|True|False|None))+")
"""Of a case that pytest had to name."""


def lines(items):
    """The sections as they are written, from collected tests."""
    about, found, files = {}, defaultdict(dict), {TESTS / file: file for files in SECTIONS.values() for file in files}
    for item in items:
        if (file := files.get(item.path)) is None:
            continue
        about[file] = (item.module.__doc__ or "").strip().split("\n")[0]
        ids = item.callspec._idlist if hasattr(item, "callspec") else []
        cases = found[file].setdefault(item.originalname, [[] for _ in ids])
        for names, name in zip(cases, ids, strict=True):
            names += [name] if name not in names and not _NO_NAME.fullmatch(name) else []
    written = []
    for title, files in SECTIONS.items():
        written += ["", f"## {title}"]
        for file in files:
            written += ["", about[file], ""] if about[file] else [""]
            for test, cases in found[file].items():
                said = test.removeprefix("test_").replace("_", " ")
                told = "; ".join(" · ".join(names) for names in cases if names)
                written.append(f"- {said[0].upper()}{said[1:]}{f': *{told}*' if told else ''}")
    return written


class Outcomes:
    """Of the tests that were run."""

    def __init__(self):
        self.items, self.failed = [], []

    def pytest_collection_finish(self, session):
        self.items = list(session.items)

    def pytest_runtest_logreport(self, report):
        if report.failed or report.skipped:
            self.failed.append(report.nodeid)


def main():
    outcomes = Outcomes()
    files = [str(TESTS / file) for files in SECTIONS.values() for file in files]
    pytest.main(["-q", *files], plugins=[outcomes])
    if outcomes.failed:
        sys.exit(f"not written, for these did not pass: {outcomes.failed}")
    versions = ", ".join(f"{name} {version(name).split('+')[0]}" for name in PACKAGES)
    PAGE.write_text(HEAD.format(versions=versions) + "\n".join(lines(outcomes.items)) + "\n")


if __name__ == "__main__":
    main()
