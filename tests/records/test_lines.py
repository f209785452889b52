"""Records as lines of JSON: what is written is read again, whatever happened to the file."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from reference import mlp

import stepguard
from stepguard.records import CollapseReading, Event, JsonLines, Memory, Reading, Rows, read_runs, runs


def reading(step, r=0.5):
    return Reading(step, r=r, tau=1.0, rho=2.0, spread=1.5, scale=1.0, lr=0.1, lr_applied=0.1, target=1.0)


def write(folder, *records, **settings):
    """By a process of its own."""
    lines = JsonLines(folder, **settings)
    for record in records:
        lines.event(record) if isinstance(record, Event) else lines.reading(record)
    lines.close()


def test_all_of_it_comes_back(tmp_path, batch):
    model, memory, lines = mlp(), Memory(), JsonLines(tmp_path, {"model": "mlp"})
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    with (
        stepguard.attach(model, optimizer, target=0.2, recorders=[memory, lines]),
        stepguard.monitor_collapse(model, optimizer, cadence=2, per_layer=True, recorders=[memory, lines]),
    ):
        for _ in range(6):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    (run,) = read_runs(tmp_path)
    assert run.readings == memory.readings and run.collapses == memory.collapses
    assert [e[:3] for e in run.events] == [e[:3] for e in memory.events]
    assert run.starts[0]["model"] == "mlp" and not run.notices
    assert list(run.times) == list(range(6))


@pytest.mark.parametrize("r", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_does_not_have(tmp_path, r):
    write(tmp_path, reading(0, r))
    for line in (tmp_path / "stepguard.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    (run,) = read_runs(tmp_path)
    assert str(run.readings[0].r) == str(r)


def test_what_is_still_being_written_is_waited_for(tmp_path):
    write(tmp_path, reading(0))
    (run,) = read_runs(tmp_path)
    path = tmp_path / "stepguard.jsonl"
    line = path.read_bytes().splitlines()[1].replace(b'"step": 0', b'"step": 1') + b"\n"
    with open(path, "ab") as file:
        file.write(line[:20])
    assert not run.update() and len(run.readings) == 1 and not run.notices
    with open(path, "ab") as file:
        file.write(line[20:])
    assert run.update() and [r.step for r in run.readings] == [0, 1]


BROKEN = {
    "a part of a line": b'{"kind": "reading", "step": 1, "r"',
    "noise": bytes(range(256)).replace(b"\n", b""),
    "a line of something else": b"[1, 2]",
    "a reading without its fields": b'{"kind": "reading", "step": 1}',
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_left_out_and_told(tmp_path, broken):
    write(tmp_path, reading(0))
    with open(tmp_path / "stepguard.jsonl", "ab") as file:
        file.write(BROKEN[broken])
    write(tmp_path, reading(1))  # begins a line of its own
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == [0, 1]
    assert run.notices == ["stepguard.jsonl, line 4: no record, left out"]


def test_of_a_run_that_went_on_from_earlier_the_later_steps_count(tmp_path):
    write(tmp_path, *(reading(step, r=0.1) for step in range(5)), Event(4, "skipped", "step 4 moved nothing"))
    write(tmp_path, reading(3, r=0.2))
    (run,) = read_runs(tmp_path)
    assert [(r.step, r.r) for r in run.readings] == [(0, 0.1), (1, 0.1), (2, 0.1), (3, 0.2)]
    assert not run.events and len(run.starts) == 2


def test_a_file_that_begins_anew_is_read_anew(tmp_path):
    write(tmp_path, *map(reading, range(5)))
    (run,) = read_runs(tmp_path)
    (tmp_path / "stepguard.jsonl").unlink()
    write(tmp_path, reading(7))
    assert run.update() and [r.step for r in run.readings] == [7]


@pytest.mark.parametrize("most", [1, 400, 10**9])
def test_a_large_file_can_be_read_by_and_by(tmp_path, monkeypatch, most):
    monkeypatch.setattr(runs, "AT_ONCE", 700)  # two readings or three
    write(tmp_path, *map(reading, range(20)), Event(20, "skipped", "x" * 2000))
    read = read_runs(tmp_path, most=most)
    for _ in range(30):
        again = read_runs(tmp_path, read, most)
        assert again[0] is read[0]
    (run,) = read
    assert [r.step for r in run.readings] == list(range(20)) and len(run.events) == 1
    assert run.bytes_left == 0 and run.bytes_read == run.path.stat().st_size and not run.notices


def test_readings_by_columns_are_a_list_of_them():
    made = [reading(step, r=step / 10) for step in range(5)]
    rows = Rows(Reading)
    for one in made:
        rows.append(one)
    assert rows == made and list(rows) == made and len(rows) == 5 and bool(rows) and not Rows(Reading)
    assert rows[-1] == made[-1] and rows[1:3] == made[1:3] and rows[::-2] == made[::-2] and made[2] in rows
    assert rows != made[:4] and rows != [*made[:4], reading(9)]
    rows.cut(3)
    assert rows == made[:3] and rows.columns["r"] == [0.0, 0.1, 0.2]
    with pytest.raises(IndexError):
        rows[3]


def test_runs_have_the_names_of_their_folders(tmp_path):
    write(tmp_path / "a" / "b", Event(0, "skipped", ""))
    write(tmp_path, Event(0, "skipped", ""), name="1")
    assert [run.name for run in read_runs(tmp_path)] == ["a/b", "1"]
    assert [run.name for run in read_runs(tmp_path / "a" / "b")] == ["."]


def test_another_schema_is_told(tmp_path):
    write(tmp_path, reading(0), about={"schema": 99})
    (run,) = read_runs(tmp_path)
    assert run.notices == ["stepguard.jsonl, line 1: schema 99, this stepguard knows schema 1"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the log_dir of a run"):
        read_runs(tmp_path / "nowhere")


GUARD, MONITOR = {"writes": "guard"}, {"writes": "monitor"}


def collapse(step):
    return CollapseReading(
        step,
        samples=4,
        collapse=0.0,
        headroom_nats=5.0,
        headroom_min=4.0,
        headroom_median=6.0,
        dtype="float32",
        classes=3,
    )


def steps(run):
    return [[r.step for r in records] for records in (run.readings, run.collapses, run.events)]


def both(folder, guard, monitor):
    """By a process that has a guard and a monitor, whose records come by turns."""
    writers = [JsonLines(folder, GUARD), JsonLines(folder, MONITOR)]
    for writer, records in zip(writers, (map(reading, guard), map(collapse, monitor)), strict=True):
        for record in records:
            writer.reading(record)
            writer.event(Event(record.step, "unmeasured", ""))
        writer.close()


# What a process wrote that has both a guard and a monitor, what the next one wrote, and what there is in the end.
WENT_ON = {
    "both go on": (([0, 1, 2, 3], [0, 2]), ([2, 3], [2]), [[0, 1, 2, 3], [0, 2], [0, 1, 0, 2, 3, 2]]),
    "both begin anew": (([0, 1, 2, 3], [0, 2]), ([0], [0]), [[0], [0], [0, 0]]),
    "the monitor is new, and counts from 0": (([0, 1], []), ([2, 3], [0]), [[0, 1, 2, 3], [0], [0, 1, 2, 3, 0]]),
    "the guard alone begins anew": (([0, 1], [0, 1]), ([0], None), [[0], [], [0]]),
}  # fmt: skip


@pytest.mark.parametrize("case", WENT_ON)
@pytest.mark.parametrize("same", [True, False], ids=["in one process", "in another process"])
def test_a_guard_and_a_monitor_count_for_themselves(tmp_path, monkeypatch, case, same):
    first, second, want = WENT_ON[case]
    both(tmp_path, *first)
    if not same:
        monkeypatch.setattr("os.getpid", lambda: -1)
    if second[1] is None:
        write(tmp_path, *map(reading, second[0]), Event(0, "unmeasured", ""), about=GUARD)
    else:
        both(tmp_path, *second)
    (run,) = read_runs(tmp_path)
    assert steps(run) == want and set(run.times) == set().union(*want)


def test_a_monitor_that_comes_first_to_the_run_of_a_guard(tmp_path, monkeypatch):
    write(tmp_path, reading(0), reading(1), about=GUARD)
    monkeypatch.setattr("os.getpid", lambda: -1)
    monitor, guard = JsonLines(tmp_path, MONITOR), JsonLines(tmp_path, GUARD)
    monitor.reading(collapse(0))
    guard.reading(reading(0))
    (run,) = read_runs(tmp_path)
    assert steps(run) == [[0], [0], []]


def test_the_axis_of_a_trainer_is_kept_beside(tmp_path):
    write(tmp_path, reading(0), reading(1), logged_step=iter([10, 15]).__next__)
    (run,) = read_runs(tmp_path)
    assert run.logged_steps == {0: 10, 1: 15} and list(run.times) == [0, 1]


def test_a_line_of_an_earlier_version_lacks_what_came_later(tmp_path):
    old = {"kind": "reading", "step": 3, "r": 2.0, "tau": 4.0, "rho": 2.0, "spread": 6.28, "scale": 0.5, "lr": 0.1}
    lines = [{"kind": "start", "schema": 1}, {**old, "lr_applied": 0.05, "target": 1.0}]
    (tmp_path / "stepguard.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_runs(tmp_path)
    assert run.readings == [Reading(3, 2.0, 4.0, 2.0, 6.28, 0.5, 0.1, 0.05, 1.0)] and not run.notices
    assert run.readings[0].samples is run.readings[0].r_median is None


@pytest.mark.filterwarnings("ignore:stepguard. take care")
def test_what_is_said_at_attach_does_not_begin_a_run_anew(tmp_path, batch, monkeypatch):
    monkeypatch.setattr("stepguard.guard.guard.cautions", lambda optimizer, changes: [("take care", False)])
    model = mlp()
    optimizer, state = torch.optim.SGD(model.parameters(), lr=0.1), None
    for _ in range(2):
        with stepguard.attach(model, optimizer, cadence="every", log_dir=tmp_path) as guard:
            if state:
                guard.load_state_dict(state)
            for _ in range(3):
                optimizer.zero_grad()
                F.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()
            state = guard.state_dict()
    (run,) = read_runs(tmp_path)
    assert [r.step for r in run.readings] == list(range(6))
    assert [e.step for e in run.events if e.kind == "caution"] == [0, 3]


LINE = {"kind": "reading", "time": 1.0, **reading(1)._asdict()}
ODD = {
    "a whole number where a float is meant": ({"lr": 1, "time": 2}, 1.0),
    "infinity as JSON does not have it": ({"lr": math.inf}, math.inf),
    "infinity as a string": ({"lr": "-inf"}, -math.inf),
    "a field that nobody knows": ({"lr": 0.5, "new": {"a": [1, 2]}}, 0.5),
    "other fields in another order": (dict(reversed({**LINE, "lr": 0.25}.items())), 0.25),
    "a kind that nobody knows": ({"kind": "new"}, None),
    "a word where a number should be": ({"lr": "much"}, "no record"),
    "no number at all": ({"lr": None}, "no record"),
    "a step between two": ({"step": 1.5}, "no record"),
    "a step that nobody gets to": ({"step": 2**70}, "no record"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_lines_are_read_as_far_as_they_say_something(tmp_path, case):
    changes, want = ODD[case]
    odd = {**({} if "kind" in changes and len(changes) > 1 else LINE), **changes}
    lines = [{"kind": "reading", **reading(0)._asdict()}, odd, {"kind": "reading", **reading(2)._asdict()}]
    (tmp_path / "stepguard.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_runs(tmp_path)
    told = want not in (None, "no record")
    assert [r.step for r in run.readings] == [0, *[1] * told, 2]
    assert not told or run.readings[1].lr == want
    assert run.notices == (["stepguard.jsonl, line 2: no record, left out"] if want == "no record" else [])


def test_numbers_inside_of_lists_and_dicts_may_be_odd_too(tmp_path):
    lines = [
        {"kind": "reading", **reading(0)._asdict(), "lrs": [0.1, "inf", None]},
        {"kind": "collapse", **collapse(0)._asdict(), "layers": {"head.weight": "nan", "body.weight": 0.5}},
    ]
    (tmp_path / "stepguard.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = read_runs(tmp_path)
    assert run.readings[0].lrs == [0.1, math.inf, None]
    assert math.isnan(run.collapses[0].layers["head.weight"]) and run.collapses[0].layers["body.weight"] == 0.5
