"""Runs that have no records but TensorBoard's scalars are in the tab, too, and nobody waits for them."""

import json
import math
import shutil
import threading
import time
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from recorded import made_up
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

from stepguard.records import Event, JsonLines, TensorBoard, read_runs
from stepguard.records.event_files import EventFile
from stepguard.records.tensorboard_runs import ScalarFolder
from stepguard.views.tensorboard import scalars, store
from stepguard.views.tensorboard.plugin import StepGuardPlugin


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch):
    monkeypatch.setattr(store, "FRESH", -1.0)
    monkeypatch.setattr(scalars, "EVERY", -1.0)


@pytest.fixture
def plugin(tmp_path):
    plugin = StepGuardPlugin(SimpleNamespace(logdir=str(tmp_path)))
    plugin._store._scalars._reader.join()  # which began before there was anything to read
    return plugin


def log(folder, *records):
    """What a run leaves that has only a SummaryWriter."""
    writer = TensorBoard(folder)
    for record in records:
        writer.event(record) if isinstance(record, Event) else writer.reading(record)
    writer.close()


def told(plugin, route, **parameters):
    """The answer, once all is read."""
    Client(plugin.get_plugin_apps()["/runs"]).get("/runs")
    plugin._store._scalars._reader.join()
    answer = Client(plugin.get_plugin_apps()[route]).get(f"{route}?{urlencode(parameters, doseq=True)}")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_constant=pytest.fail)


def names(plugin):
    return [run["name"] for run in told(plugin, "/runs")["runs"]]


def test_they_stand_beside_runs_with_records_and_show_what_they_tell(plugin, tmp_path):
    log(tmp_path / "scalars", made_up(0), made_up(3, r=2.0, scale=0.5), Event(5, "skipped", "step 5 moved nothing"))
    lines = JsonLines(tmp_path / "records")
    lines.reading(made_up(0))
    assert names(plugin) == ["scalars", "records"]
    run = told(plugin, "/runs")["runs"][0]
    assert run.items() >= {"readings": 2, "events": 1, "breaches": 1, "target": 1.0, "last": 5}.items()
    assert "no records" in run["notices"][0]
    answer = told(plugin, "/series", run="scalars")["scalars"]
    assert answer["charts"]["r"] == {"step": [0, 3], "r": pytest.approx([0.3, 2.0])}
    assert answer["marks"] == [[3, 2.0, 0.5, 1]] and answer["targets"] == [1.0]
    assert told(plugin, "/events", run="scalars")["events"][0]["message"] == "step 5 moved nothing"
    lines.close()


def test_they_grow(plugin, tmp_path):
    log(tmp_path, made_up(0))
    before = told(plugin, "/runs")["runs"][0]
    log(tmp_path, made_up(4))
    after = told(plugin, "/runs")["runs"][0]
    assert (before["last"], after["last"]) == (0, 4) and before["version"] != after["version"]


def test_another_content_of_the_same_length_is_another_version(plugin, tmp_path):
    log(tmp_path, made_up(3, r=0.4))
    before = told(plugin, "/runs")["runs"][0]
    time.sleep(0.01)
    log(tmp_path, made_up(3, r=0.5))  # it began anew
    after = told(plugin, "/runs")["runs"][0]
    assert before["version"] != after["version"] and after["r"] == 0.5


def test_while_they_are_read_all_else_is_answered(plugin, tmp_path, monkeypatch):
    log(tmp_path / "slow", made_up(0))
    JsonLines(tmp_path / "records").close()
    may_go_on, update = threading.Event(), ScalarFolder.update
    monkeypatch.setattr(ScalarFolder, "update", lambda self: may_go_on.wait(20) and update(self))
    for _ in range(3):
        answer = Client(plugin.get_plugin_apps()["/runs"]).get("/runs").json
    assert [run["name"] for run in answer["runs"]] == ["records"]
    may_go_on.set()
    assert names(plugin) == ["slow", "records"]


def test_they_are_read_once_however_often_somebody_asks(plugin, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read, reload = [], EventAccumulator.Reload
    monkeypatch.setattr(EventAccumulator, "Reload", lambda self: read.append(self) or reload(self))
    log(tmp_path, made_up(0))
    for _ in range(5):
        assert names(plugin) == ["."]
    assert len(read) == 1


def test_files_without_a_word_of_ours_are_not_read_at_all(plugin, tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboard.backend.event_processing.event_accumulator.EventAccumulator", None)
    with SummaryWriter(tmp_path / "theirs") as writer:
        writer.add_scalar("loss", 1.0, 0)
        assert names(plugin) == [] and not plugin.is_active()


@pytest.mark.parametrize("before", [0, 2**20 - 9, 2**20 - 5, 2**20, 2**21 - 1])
@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_a_word_of_ours_is_found_wherever_it_lies_and_however_late_it_comes(tmp_path, before, cut):
    path, word = tmp_path / "events.out.tfevents.1.there", b"stepguard"
    path.write_bytes(b"x" * before + word[:cut])
    file = EventFile(path)
    assert file._is_ours() == (cut == 9)
    with open(path, "ab") as more:
        more.write(word[cut:])
    assert file._is_ours()


def test_they_open_the_tab_by_themselves(plugin, tmp_path, monkeypatch):
    assert not plugin.is_active()
    log(tmp_path, made_up(0))
    plugin.is_active()
    plugin._store._scalars._reader.join()
    assert plugin.is_active()


def test_who_gets_records_or_is_deleted_goes(plugin, tmp_path):
    for name in "abc":
        log(tmp_path / name, made_up(0))
    assert names(plugin) == ["a", "b", "c"]
    JsonLines(tmp_path / "a").close()
    shutil.rmtree(tmp_path / "b")
    assert names(plugin) == ["c", "a"] and told(plugin, "/runs")["runs"][1]["readings"] == 0


def test_of_a_target_that_nobody_knows_nothing_is_beyond_but_what_is_not_finite(plugin, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for step, r in enumerate([0.3, 7.0, math.nan, math.inf]):
            writer.add_scalar("stepguard/r", r, step)
    (run,) = told(plugin, "/runs")["runs"]
    assert (run["target"], run["breaches"], run["r"]) == (None, 2, "inf")
    answer = told(plugin, "/series", run=".")["."]
    assert answer["marks"] == [[2, "nan", "nan", 1], [3, "inf", "nan", 1]] and answer["targets"] == []
    assert [r.breach for r in read_runs(tmp_path)[0].readings] == [False, False, True, True]
    assert read_runs(tmp_path)[0].readings[0].lr_safe is None
