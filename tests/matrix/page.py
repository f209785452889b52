"""Writes docs/models.md from the cases and what they measure.

PYTHONPATH=tests python -m matrix.page
"""

import warnings
from pathlib import Path

import torch
from matrix.huggingface import HUGGING_FACE
from matrix.models import MODELS
from matrix.steps import STEPS
from matrix.steps_refused import REFUSED
from matrix.task import Case, run

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SECTIONS = {
    "Models": MODELS,
    "Hugging Face models": HUGGING_FACE,
    "Training steps": STEPS,
    "What cannot be measured": REFUSED,
}
HEAD = """\
# What it works on

Each row is a test: a model and a training step, and three optimizer steps with nothing else said than
`stepguard.attach(model, optimizer, action="observe")`. r of each stands beside a float64 reference that differentiates
the true logits on its own (a central difference of 1e-6 of the step); and to the same run without a guard it must be
equal to the last bit. *Off by* is the largest relative error of the three. Where r cannot be had, the guard must say
so: the row then gives its reason.

*By* is how the slopes were taken: **forward** mode, or the finite **difference** that takes over where that cannot run
the model or is wrong about it. Rows in half precision may be 5% off, as may differences; forward mode in float32 1e-4.

This page is written by `PYTHONPATH=tests python -m matrix.page`, here with torch {torch}; a test holds that no row is
missing.
"""


def start(case: Case) -> str:
    """The part of its line that does not depend on the machine."""
    return f"| {case.name} | {'refused' if case.refused else case.estimator} |"


def rows(cases: list[Case]) -> list[str]:
    """The lines of a table."""
    lines = ["| case | by | off by | note |", "|---|---|---|---|"]
    for case in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(case)
        if case.refused:
            reason = found[0].unmeasured.split("made it. ")[1].split(";")[0].split(". ")[0]
            lines.append(f"{start(case)} | {reason} |")
        else:
            off = max(abs(m.r - m.reference) / m.reference for m in found)
            lines.append(f"{start(case)} {off:.0e} | {case.note} |")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    parts = [HEAD.format(torch=torch.__version__.split("+")[0])]
    for title, cases in SECTIONS.items():
        measured = [c for c in cases if not c.refused] if title != "What cannot be measured" else []
        refused = [c for s in SECTIONS.values() for c in s if c.refused] if not measured else []
        parts.append("\n".join([f"## {title}", "", *rows(measured or refused), ""]))
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
