"""Runs made from TensorBoard's files alone: beside what the records of the very same run say."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

import stepguard
from stepguard.records import Event, Reading, TensorBoard, breach_event, metric_values, read_runs
from stepguard.records.event_files import Tag

# Tags as they are found in the field, and what they are: group, name, optimizer, layer.
TAGS = {
    "stepguard/r": ("stepguard", "r", "", ""),
    "train/stepguard/r_breach": ("stepguard", "r_breach", "", ""),
    "stepguard/lr_applied/1": ("stepguard", "lr_applied", "1", ""),
    "train_stepguard_r_breach_0": ("stepguard", "r_breach", "0", ""),
    "prefix-stepguard-rho": ("stepguard", "rho", "", ""),
    "softmax.cost_share": ("softmax", "cost_share", "", ""),
    "softmax/nlm_alignment": ("softmax", "nlm_alignment", "", ""),
    "softmax/nlm_alignment/body.0.weight": ("softmax", "nlm_alignment", "", "body.0.weight"),
    "softmax/nlm_alignment/body.0.weight/1": ("softmax", "nlm_alignment", "1", "body.0.weight"),
    "train/stepguard/events/text_summary": ("stepguard", "events", "", ""),
    "stepguard/r/of/something": None,
    "stepguard/collapse": None,
    "mystepguard/r": None,
    "softmax/r": None,
    "loss": None,
}


@pytest.mark.parametrize("tag", TAGS)
def test_our_tags_are_known_whatever_is_around_them(tag):
    assert Tag.of(tag) == TAGS[tag]


def train(folder, steps=12, states=None, **settings):
    """Some steps beyond their target, written to both; what the guard and the monitor know at the end."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    given = {"target": 0.1, "cadence": "every", **settings}
    with (
        stepguard.attach(model, optimizer, log_dir=folder, **given) as guard,
        stepguard.monitor_collapse(model, optimizer, cadence=2, per_layer=True, log_dir=folder) as monitor,
    ):
        for watcher, state in zip((guard, monitor), states or (), strict=False):
            watcher.load_state_dict(state)
        for step in range(steps):
            x = torch.randn(6, 12) * (20 if step % 5 == 3 else 0.1)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(6) % 5).backward()
            if step == 9:
                model[0].weight.grad.fill_(math.nan)
            optimizer.step()
        return guard.state_dict(), monitor.state_dict()


def pair(folder):
    """The run by its records, and by its scalars alone."""
    (records,) = read_runs(folder)
    alone = folder.parent / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("*.jsonl"))
    (scalars,) = read_runs(alone)
    return records, scalars


def assert_same(one, other, *unknown):
    for name, value in one.as_dict().items():
        if name not in unknown:
            expected = pytest.approx(value, rel=2e-6, nan_ok=True) if isinstance(value, float) else value
            assert getattr(other, name) == expected, name


MODES = {
    "clamp": {},
    "clamp to the limit": {"clamp_to": "limit"},
    "observe": {"action": "observe"},
    "drive": {"action": "drive"},
}
NOT_IN_SCALARS = ["estimator", "why", "gradient_norm", "weight_norm", "r_median", "samples"]
NOT_IN_SCALARS += [
    "loss",
    "loss_max",
    "collapse",
    "inputs",
    "input_norm",
    "input_norm_max",
    "lrs",
    "lr_before",
    "tau_before",
]


@pytest.mark.filterwarnings("ignore:stepguard. step .* was not")
@pytest.mark.parametrize("mode", MODES)
def test_what_scalars_tell_is_what_the_records_say(mode, tmp_path):
    train(tmp_path / "run", **MODES[mode])
    records, scalars = pair(tmp_path / "run")
    assert [r.step for r in scalars.readings] == [r.step for r in records.readings]
    for one, other in zip(records.readings, scalars.readings, strict=True):
        withheld = ["lr"] if one.scale == 0 else []
        assert_same(one, other, *NOT_IN_SCALARS, *withheld)
        assert one.breach == other.breach
    assert [c.step for c in scalars.collapses] == [c.step for c in records.collapses]
    for one, other in zip(records.collapses, scalars.collapses, strict=True):
        assert_same(one, other, "samples", "dtype", "classes", "every", "layers", "zero_gradients")
        assert other.layers == pytest.approx(one.layers, rel=1e-6)
    told = [sorted((e.step, e.kind, e.message) for e in run.events) for run in (records, scalars)]
    assert told[0] == told[1] and scalars.times.keys() == records.times.keys()
    assert len(scalars.notices) == 1 and "no records" in scalars.notices[0]


def test_a_run_that_went_on_from_earlier(tmp_path):
    states = train(tmp_path / "run", 6)
    train(tmp_path / "run", 9)
    train(tmp_path / "run", 2, states)
    records, scalars = pair(tmp_path / "run")
    assert [r.step for r in scalars.readings] == [r.step for r in records.readings] == list(range(8))
    assert [r.r for r in scalars.readings] == pytest.approx([r.r for r in records.readings])
    assert sorted(e[:3] for e in scalars.events) == sorted(e[:3] for e in records.events)
    assert [c.step for c in scalars.collapses] == [c.step for c in records.collapses]


def reading(step, r=0.5, scale=1.0, lr=0.1, target=0.7):
    return Reading(step, r, r, 1.0, math.pi * r, scale, lr, scale * lr, target)


def written(folder, *points, texts=(), end=""):
    """Scalars by another hand, under a trainer's names."""
    with SummaryWriter(folder) as writer:
        for step, values in points:
            for name, value in values.items():
                writer.add_scalar(f"train/{name}{end}", value, step)
        for step, text in texts:
            writer.add_text("train/stepguard/events", text, step)


def without(values, *names):
    return {name: value for name, value in values.items() if name.split("/")[1] not in names}


def points(*readings, lacking=()):
    return [(r.step, without(metric_values(r), *lacking)) for r in readings]


CLAMPED = reading(2, r=2.0, scale=0.35)
# What is in the files, and the target that it tells.
TARGETS = {
    "a rate that is safe": (points(reading(1)), [], 0.7),
    "the text of a breach": (
        points(reading(1), CLAMPED, lacking=["lr_safe"]),
        [(2, breach_event(CLAMPED._replace(target=0.69)).message)],
        0.69,
    ),
    "how long a clamped step is": (points(reading(1), CLAMPED, lacking=["lr_safe"]), [], 0.7),
    "nothing": (points(reading(1), lacking=["lr_safe"]), [], math.nan),
}


@pytest.mark.parametrize("case", TARGETS)
def test_where_a_target_is_taken_from(case, tmp_path):
    given, texts, target = TARGETS[case]
    written(tmp_path, *given, texts=texts)
    (run,) = read_runs(tmp_path)
    assert [r.target for r in run.readings] == pytest.approx([target] * len(given), nan_ok=True)


def test_of_a_breach_between_two_logged_steps_its_text_tells_the_rest(tmp_path):
    breach = reading(4, r=2.0, scale=0.35)
    written(tmp_path, *points(reading(0)), (4, {"stepguard/r_breach": 2.0}), texts=[(4, breach_event(breach).message)])
    (run,) = read_runs(tmp_path)
    assert_same(breach, run.readings[1], *NOT_IN_SCALARS)
    assert run.events == [Event(4, "clamp", breach_event(breach).message)]


def test_several_optimizers_are_several_runs(tmp_path):
    written(
        tmp_path / "a", *points(reading(0)), texts=[(0, "optimizer 0, step 0: the optimizer moved nothing")], end="/0"
    )
    written(tmp_path / "a", *points(reading(0), reading(1)), end="/1")
    first, second = read_runs(tmp_path)
    assert (first.name, second.name) == ("a 0", "a 1")
    assert [len(run.readings) for run in (first, second)] == [1, 2]
    assert [e.kind for e in first.events] == ["skipped"] and not second.events


def test_it_is_read_on_while_it_is_written(tmp_path):
    log = TensorBoard(tmp_path)
    log.reading(reading(0))
    log._writer.flush()
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == [0] and not run.update()
    log.reading(reading(1))
    log.event(Event(1, "skipped", "step 1: the optimizer moved nothing"))
    log.close()
    assert run.update() and [r.step for r in run.readings] == [0, 1] and run.events[0].kind == "skipped"


def test_more_points_than_tensorboard_shows_are_all_there(tmp_path):
    log = TensorBoard(tmp_path)
    for step in range(11_000):  # a tag of which no guidance is given keeps 10,000
        log.scalars({"stepguard/r": 0.5}, step)
    log.close()
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == list(range(11_000))


def test_other_peoples_files_are_no_runs(tmp_path):
    written(tmp_path / "theirs", (0, {"loss": 1.0}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "events.out.tfevents.1000000000.there.1.0").write_bytes(
        b"\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f"
    )
    assert read_runs(tmp_path) == []


def test_of_a_broken_file_what_can_be_read_is_there(tmp_path):
    log = TensorBoard(tmp_path)
    log.reading(reading(0))
    log.close()
    (path,) = tmp_path.iterdir()
    with open(path, "ab") as file:
        RecordWriter(file).write(b"\xff no event")
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == [0] and any("cannot be read to its end" in n for n in run.notices)


def test_records_beside_it_are_what_counts(tmp_path):
    train(tmp_path / "run", 3)
    assert [run.path.name for run in read_runs(tmp_path)] == ["stepguard.jsonl"]
