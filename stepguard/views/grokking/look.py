from __future__ import annotations

from rich.text import Text

from stepguard.views.frame import CollapseFrame, alignment, collapsed, headroom
from stepguard.views.look import Column, Look, bar

RIGHT, LOST = "green", "red"


def _line(frame: CollapseFrame) -> str:
    # No column for collapse, which is where headroom is negative: beside the runs' names this fills 80 columns.
    return (
        f"loss {frame.loss:<7.2g}  train {frame.train_accuracy:5.1f}%  test {frame.test_accuracy:5.1f}% "
        f"{headroom(frame):5.1f} nats"
    )


def _red(text: str, when: bool) -> Text:
    return Text(text, style=LOST if when else "")


GROKKING_LOOK: Look[CollapseFrame] = Look(
    unit="epoch",
    columns=(
        Column("loss", lambda frame: f"{frame.loss:.3g}"),
        Column("train\n%", lambda frame: f"{frame.train_accuracy:.1f}"),
        Column("test\n%", lambda frame: f"{frame.test_accuracy:.1f}"),
        Column("", lambda frame: bar(frame.test_accuracy / 100, RIGHT), wide=True),
        Column("col-\nlapsed", lambda frame: _red(f"{collapsed(frame):.1f}%", collapsed(frame) > 0)),
        Column("head-\nroom", lambda frame: _red(f"{headroom(frame):.2f}", headroom(frame) <= 0)),
        Column("align-\nment", lambda frame: f"{alignment(frame):.2f}"),
    ),
    legend=Text(
        "headroom: nats left before the softmax collapses\n"
        "alignment: cosine of -grad with the weights, before perpGrad",
        style="dim",
        justify="right",
    ),
    line=_line,
)
