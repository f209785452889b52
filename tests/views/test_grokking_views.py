"""What the grokking demo shows: live, in lines, as a table and as a picture."""

import io
import math

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from views.frames import Epoch, room
from views.screens import last_picture, terminal

from stepguard.records import Event
from stepguard.views.console import watch
from stepguard.views.grokking import picture
from stepguard.views.grokking.look import GROKKING_LOOK
from stepguard.views.grokking.milestones import milestones
from stepguard.views.grokking.picture import save_picture
from stepguard.views.grokking.summary import Outcome, closing_table, outcome
from stepguard.views.plain import PlainView

RUNS = ["AdamW", "AdamW + perpGrad"]


def cells(frame):
    return {
        column.heading.replace("-\n", "").replace("\n", " "): column.cell(frame) for column in GROKKING_LOOK.columns
    }


def test_each_column_shows_its_number():
    shown = cells(Epoch(7, 0.001234, 98.76, 25.04, room(7, 3.456, collapse=0.0123, alignment=-0.789)))
    bar = shown.pop("")
    assert {heading: str(cell) for heading, cell in shown.items()} == {
        "loss": "0.00123",
        "train %": "98.8",
        "test %": "25.0",
        "collapsed": "1.2%",
        "headroom": "3.46",
        "alignment": "-0.79",
    }
    assert bar.completed / bar.total == pytest.approx(0.2504)


@pytest.mark.parametrize(
    "reading, red",
    [
        (None, set()),
        (room(0, 0.01), set()),
        (room(0, 0.01, collapse=0.002), {"collapsed"}),
        (room(0, 0.0), {"headroom"}),
        (room(0, -2.0, collapse=0.3), {"collapsed", "headroom"}),
    ],
)
def test_collapse_is_red(reading, red):
    shown = cells(Epoch(0, reading=reading))
    assert {heading for heading in ("collapsed", "headroom") if shown[heading].style == "red"} == red


def told(kind, epoch, headroom, collapse=0.0):
    return Event(
        epoch, kind, f"step {epoch}: much longer than half a line of eighty columns", room(epoch, headroom, collapse)
    )


EVENTS = {
    "AdamW": (
        Event(48, "fitted", "epoch 48: train 100.0%"),
        told("warning", 50, 2.961),
        told("onset", 129, -0.1, collapse=0.123),
    ),
    "AdamW + perpGrad": (
        told("warning", 90, 0.9),
        Event(107, "generalised", "epoch 107: test 98.1%"),
        Event(108, "fitted", "epoch 108: train 99.9%"),
        told("recovery", 150, 6.25),
    ),
}


@pytest.mark.parametrize("width, height", [(80, 24), (160, 45)])
def test_live_view_fits_and_shows_everything(width, height):
    console = terminal(width, height)
    with watch(console, "a title", RUNS, GROKKING_LOOK, 320) as view:
        view.stage("seed 42")
        for epoch in range(160):
            for run, headroom in zip(RUNS, (-12.34, 8.91), strict=True):
                reading = room(epoch, headroom, collapse=float(headroom < 0), alignment=-0.55)
                events = tuple(event for event in EVENTS[run] if event.step == epoch)
                view.frame(run, Epoch(epoch, 1.234e-05, 100.0, 99.9, reading, events))
    lines = last_picture(view, console).splitlines()
    text = "\n".join(lines)
    assert len(lines) < height and max(map(len, lines)) <= width
    for part in ("a title", "seed 42", "100% left", "epoch", "loss", "train", "test", "lapsed", "room", "ment"):
        assert part in text
    for part in ("nats left before the softmax collapses", "cosine of -grad with the weights, before perpGrad"):
        assert part in text
    rows = [line.strip("│ ").replace("━", "").replace("╸", "").split() for line in lines]
    assert ["AdamW", "159", "1.23e-05", "100.0", "99.9", "100.0%", "-12.34", "-0.55"] in rows
    assert ["AdamW", "+", "perpGrad", "159", "1.23e-05", "100.0", "99.9", "0.0%", "8.91", "-0.55"] in rows
    assert [" ".join(row) for row in rows[-8:-1]] == [
        "AdamW fitted epoch 48: train 100.0%",
        "AdamW warning epoch 50: 2.96 nats left",
        "AdamW + perpGrad warning epoch 90: 0.90 nats left",
        "AdamW + perpGrad generalised epoch 107: test 98.1%",
        "AdamW + perpGrad fitted epoch 108: train 99.9%",
        "AdamW onset epoch 129: 12.3% collapsed",
        "AdamW + perpGrad recovery epoch 150: 6.25 nats left",
    ]


def test_the_bar_grows_with_the_test_accuracy():
    console = terminal()
    with watch(console, "", RUNS, GROKKING_LOOK, 2) as view:
        view.frame(RUNS[0], Epoch(0, test_accuracy=0.0))
        view.frame(RUNS[1], Epoch(0, test_accuracy=100.0))
    rows = [line for line in last_picture(view, console).splitlines() if line.strip("│ ").startswith("AdamW")]
    without, full = (row.count("━") for row in rows)
    assert without == 0 and full >= 6


@pytest.mark.parametrize("headroom", [0.0, -78.75, 36.7, math.inf, math.nan, None])
def test_views_survive_any_headroom(headroom):
    reading = None if headroom is None else room(0, headroom, collapse=1.0)
    console, out = terminal(), io.StringIO()
    lines = Console(file=out, width=80)
    with watch(console, "", RUNS, GROKKING_LOOK, 2) as live, PlainView(lines, "", RUNS, GROKKING_LOOK) as plain:
        for run, loss in zip(RUNS, (math.nan, math.inf), strict=True):
            live.frame(run, Epoch(0, loss=loss, reading=reading))
            plain.frame(run, Epoch(0, loss=loss, reading=reading))
    for text in (last_picture(live, console), out.getvalue()):
        assert all(part in text for part in (*RUNS, "nan", "inf"))


def plain_lines(width, epochs=60):
    out = io.StringIO()
    with PlainView(Console(file=out, width=width), "a title", RUNS, GROKKING_LOOK) as view:
        view.stage("seed 42")
        for epoch in range(epochs):
            for run in RUNS:
                events = tuple(event for event in EVENTS[run] if event.step == epoch)
                view.frame(run, Epoch(epoch, 1.234e-05, 100.0, 99.9, room(epoch, -78.75, collapse=1.0), events))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 160])
def test_plain_lines_are_whole_and_fit(width):
    lines = plain_lines(width)
    assert max(map(len, lines)) <= 80
    assert [" ".join(line.split()) for line in lines] == [
        "a title",
        "seed 42",
        "epoch 24 AdamW loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
        "epoch 24 AdamW + perpGrad loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
        "! AdamW fitted, epoch 48: train 100.0%",
        "epoch 49 AdamW loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
        "epoch 49 AdamW + perpGrad loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
        "! AdamW warning, epoch 50: 2.96 nats left",
        "epoch 59 AdamW loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
        "epoch 59 AdamW + perpGrad loss 1.2e-05 train 100.0% test 99.9% -78.8 nats",
    ]


def reached(accuracies):
    frames = [Epoch(epoch, 1.0, train, test) for epoch, (train, test) in enumerate(accuracies)]
    return [(e.step, e.kind, e.message) for i, frame in enumerate(frames) for e in milestones(frames[:i], frame)]


def test_milestones_come_once_and_where_they_are_reached():
    assert reached([(99.89, 97.99)] * 3) == []
    assert reached([(50.0, 5.0), (99.9, 97.99), (99.0, 98.0), (100.0, 50.0), (100.0, 100.0)]) == [
        (1, "fitted", "epoch 1: train 99.9%"),
        (2, "generalised", "epoch 2: test 98.0%"),
    ]
    assert [kind for _, kind, _ in reached([(100.0, 100.0)])] == ["fitted", "generalised"]


def test_outcome_of_a_run_by_hand():
    tests = [1.0, 50.0, 49.0, 98.5, 97.0]
    readings = [None, room(1, 9.0), room(2, -0.5, collapse=0.25), None, room(4, 2.0, collapse=0.01)]
    frames = [
        Epoch(i, 1.0, 90.0 + i, test, reading) for i, (test, reading) in enumerate(zip(tests, readings, strict=True))
    ]
    assert outcome(frames) == Outcome(94.0, 97.0, half=1, generalised=3, peak_collapse=25.0, lowest_headroom=-0.5)


def test_where_a_run_did_not_get_there_is_none():
    assert outcome([Epoch(0, test_accuracy=49.9)])[2:4] == (None, None)
    assert outcome([Epoch(0, test_accuracy=50.0)])[2:4] == (0, None)


def table(rows, caption=""):
    out = io.StringIO()
    Console(file=out, width=80).print(closing_table(rows, caption))
    return out.getvalue().splitlines()


def test_the_table_is_whole_in_80_columns():
    rows = {
        RUNS[0]: Outcome(100.0, 0.04, None, None, 100.0, -78.75),
        RUNS[1]: Outcome(99.96, 100.0, 0, 10000, 0.04, 36.7),
    }
    lines = [" ".join(line.split()) for line in table(rows, "a caption")]
    assert "AdamW 100.0 0.0 never never 100.0% -78.75" in lines
    assert "AdamW + perpGrad 100.0 100.0 0 10000 0.0% 36.70" in lines
    assert "a caption" in lines and "run % % of 50% of 98% at most at least" in lines


def test_what_was_not_measured_is_no_number_in_the_table():
    (row,) = (line.split() for line in table({"AdamW": outcome([Epoch(0)])}) if "AdamW" in line)
    assert row == ["AdamW", "50.0", "5.0", "never", "never", "-", "-"]


VERMILLION, BLUE = (0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)


def test_a_picture_of_two_runs(tmp_path):
    frames = [
        Epoch(i, 1.0, min(100.0, 3.0 * i), min(100.0, 2.0 * i), room(i, 9.0 - i / 5, i / 100, 0.5)) for i in range(80)
    ]
    save_picture(tmp_path / "two.png", {RUNS[0]: frames[:50], RUNS[1]: frames}, title="a title")
    save_picture(tmp_path / "one.png", {RUNS[0]: frames}, title="a title")
    two, one = imread(tmp_path / "two.png"), imread(tmp_path / "one.png")
    assert two.shape[1] == one.shape[1] == 1600
    assert (has(two, VERMILLION), has(two, BLUE), has(one, VERMILLION), has(one, BLUE)) == (True, True, True, False)


def has(image, colour):
    return bool(((image[..., :3] * 255).round() == colour).all(-1).any())


def drawn(monkeypatch, path, histories):
    """The panels of a picture that has been saved."""
    figures, save = [], picture.save_with_legend
    monkeypatch.setattr(
        picture, "save_with_legend", lambda figure, *rest: figures.append(figure) or save(figure, *rest)
    )
    save_picture(path, histories, title="a title")
    assert path.read_bytes().startswith(b"\x89PNG")
    return figures[0].axes


def test_curves_pass_over_what_is_not_a_number(tmp_path, monkeypatch):
    readings = [
        room(0, 9.0, 0.0, 0.1),
        None,
        room(2, math.inf, 0.5),
        room(3, math.nan, 1.0, 0.3),
        room(4, -2.0, 0.25, 0.4),
    ]
    frames = [Epoch(i, math.nan, 10.0 * i, float(i), reading) for i, reading in enumerate(readings)]
    accuracy, nats, share, cosine = drawn(monkeypatch, tmp_path / "a.png", {"AdamW": frames})
    train, test = accuracy.lines
    assert train.get_ydata() == pytest.approx([0, 10, 20, 30, 40]) and test.get_ydata() == pytest.approx(
        [0, 1, 2, 3, 4]
    )
    for panel, epochs, values in (
        (nats, [0, 4], [9.0, -2.0]),
        (share, [0, 2, 3, 4], [0.0, 50.0, 100.0, 25.0]),
        (cosine, [0, 3, 4], [0.1, 0.3, 0.4]),
    ):
        np.testing.assert_allclose(panel.lines[0].get_xydata(), np.column_stack([epochs, values]))


@pytest.mark.parametrize("epochs", [1, 2, 60])
def test_a_run_of_which_nothing_was_measured(tmp_path, monkeypatch, epochs):
    frames = [Epoch(epoch) for epoch in range(epochs)]
    _, nats, share, cosine = drawn(monkeypatch, tmp_path / "a.png", {RUNS[0]: frames, RUNS[1]: frames[:1]})
    assert len(nats.lines) == 1  # the limit at 0 alone
    assert not share.lines and not cosine.lines


def test_little_collapse_looks_like_little(tmp_path, monkeypatch):
    frames = [Epoch(i, reading=room(i, 1.0, collapse=i / 10_000)) for i in range(20)]
    assert drawn(monkeypatch, tmp_path / "a.png", {"AdamW": frames})[2].get_ylim() == (0, 1)
    frames = [Epoch(i, reading=room(i, 1.0, collapse=i / 20)) for i in range(20)]
    assert drawn(monkeypatch, tmp_path / "b.png", {"AdamW": frames})[2].get_ylim()[1] >= 95


@pytest.mark.parametrize("epoch", [0, 100, 160, 161, 199])
def test_the_note_on_generalising_stays_on_the_paper(tmp_path, monkeypatch, epoch):
    frames = [Epoch(i, test_accuracy=98.0 if i == epoch else 40.0) for i in range(200)]
    accuracy = drawn(monkeypatch, tmp_path / "a.png", {"AdamW": frames})[0]
    (note,) = accuracy.texts
    assert note.get_text() == f"98% of the test pairs\nat epoch {epoch}"
    where, paper = note.get_window_extent(), accuracy.get_window_extent()
    assert paper.x0 <= where.x0 and where.x1 <= paper.x1 and paper.y0 <= where.y0
