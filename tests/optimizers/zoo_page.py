"""Writes docs/optimizers.md from the cases and what they measure.

PYTHONPATH=tests python -m optimizers.zoo_page
"""

import math
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from optimizers.measure import SPIKE, STEPS, measure
from optimizers.zoo import LEFT_OUT, SECTIONS, Case

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"
HEAD = """\
# Which optimizers

A shortened step is `theta_old + s * u`, whatever made u. Most optimizers keep averages of gradients only, and for
those that is a step at a lower learning rate. Some keep points or sums that belong to where the parameters are. If only
the parameters were put back, these would ask for the whole step again: in the run below schedule-free AdamW for 1,800
times the usual, DAdaptAdam for 900 and MADGRAD for 140, and at each of the steps that follow. So what they keep makes
the same share of the step (*goes along*), where stepguard knows it by a part of the optimizer's name, which subclasses
and other packages share; that takes one copy of it. LBFGS forgets its curvature, which is that of a step not made.
Where this is not enough, `attach` says so (a warning and a `caution` event): the next steps are shortened too, so that
r stays at the target, and the guard binds for longer than the cause lasts.

Each row is a test: a small softmax model, {spike} steps at a thousand times the learning rate, `clamp_to="limit"`.

- **spike**: length of the first such step, over the usual.
- **r made**: the largest r that the parameters really made over the target, by a float64 difference of the test's own,
  in this run and in another whose target is half of the usual r.
- **after**: length asked for at the first step after the spike, over that of a run without one. 1.0 is no rebound.
- **for**: how many of the {rest} steps after the spike ask for more than three times that.

For each of them `action="observe"` leaves parameters, optimizer state and losses as they are without it, to the bit;
after the spike the state is finite and training goes on.

**Optimizers around others** (Lookahead, OrthoGrad, PCGrad, ScheduleFreeWrapper): attach to the outer one. It is
measured once, with what it does on top, which a guard of the inner one would not see. **SAM** and its like take
gradients elsewhere than where their step starts from. Attach to `base_optimizer` and say on which batch to measure,
which holds with a closure as well as with `first_step` and `second_step`:

```python
import pytorch_optimizer
import torch
import stepguard

model, batch = torch.nn.Linear(12, 5), {{}}
sam = pytorch_optimizer.SAM(model.parameters(), torch.optim.SGD, lr=0.1)
guard = stepguard.attach(model, sam.base_optimizer, forward=lambda m: m(batch["x"]))


def closure():
    sam.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    loss.backward()
    return loss


for _ in range(2):
    batch["x"], batch["y"] = torch.randn(8, 12), torch.randint(0, 5, (8,))
    closure()
    sam.step(closure)
    print(guard.last.r)
guard.detach()
```

**Left out**: {left_out}.

This page is written by `PYTHONPATH=tests python -m optimizers.zoo_page`, here with torch {torch} and pytorch_optimizer
{po}; a test holds that no row is missing.
"""


def row(name: str, case: Case) -> str:
    """What was measured of it."""
    found = measure(case)
    if not case.measured:
        said = next(e.message for e in found.spiked.memory.events if e.kind == "unmeasured").split(". ")[0]
        return f"| {name} | | not measured | | | {said} |"
    after = "-" if math.isnan(found.rebound) else f"{found.rebound:.1f}"
    asked = "-" if math.isnan(found.asked) else f"{found.asked:,.{0 if found.asked > 10 else 1}f}"
    caution = [e.message.split(",")[0] for e in found.spiked.memory.events if e.kind == "caution"]
    note = "; ".join([*([case.note] if case.note else []), *(f"caution: {said}" for said in caution)])
    return f"| {name} | {asked} | {found.over:.4f} | {after} | {found.lasts} | {note} |"


def main() -> None:
    torch.set_num_threads(1)
    left_out = "; ".join(f"{name} ({why})" for name, why in LEFT_OUT.items())
    versions = {"torch": torch.__version__.split("+")[0], "po": version("pytorch_optimizer")}
    rest = STEPS - SPIKE.stop
    parts = [HEAD.format(spike=len(SPIKE), rest=rest, left_out=left_out, **versions)]
    for title, cases in SECTIONS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = [row(name, case) for name, case in cases.items()]
        lines = ["| optimizer | spike | r made | after | for | note |", "|---|---|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {title}", "", *lines, ""]))
    PAGE.write_text("\n".join(parts))


if __name__ == "__main__":
    main()
