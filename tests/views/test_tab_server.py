"""What the tab's page is told, and that TensorBoard survives whatever goes wrong with it."""

import json
import math
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
from recorded import made_up
from werkzeug.test import Client

from stepguard.records import CollapseReading, Event, JsonLines
from stepguard.views.tensorboard import store
from stepguard.views.tensorboard.loader import StepGuardLoader
from stepguard.views.tensorboard.plugin import STATIC, StepGuardPlugin


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch):
    monkeypatch.setattr(store, "FRESH", -1.0)


@pytest.fixture
def plugin(tmp_path):
    plugin = StepGuardPlugin(SimpleNamespace(logdir=str(tmp_path)))
    plugin._store._reader.join()  # which began before there was anything to read
    return plugin


def write(folder, *records):
    lines = JsonLines(folder)
    for record in records:
        lines.event(record) if isinstance(record, Event) else lines.reading(record)
    lines.close()


def get(plugin, route, **parameters):
    query = urlencode(parameters, doseq=True)
    return Client(plugin.get_plugin_apps()[route]).get(f"{route}?{query}")


def told(plugin, route, **parameters):
    answer = get(plugin, route, **parameters)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.text, parse_constant=pytest.fail)


def looked(step, **changed):
    return CollapseReading(step, 64, 0.0, 2.5, 2.0, 9.0, "float32", 10)._replace(**changed)


def test_a_run_in_a_line(plugin, tmp_path):
    write(tmp_path / "a", made_up(0), made_up(4, r=3.0, scale=0.2), looked(5), Event(4, "clamp", "step 4"))
    (run,) = told(plugin, "/runs")["runs"]
    assert run.items() >= {"name": "a", "readings": 2, "collapses": 1, "events": 1, "breaches": 1}.items()
    assert run.items() >= {"first": 0, "last": 5, "r": 3.0, "target": 1.0, "dtype": "float32"}.items()


def test_the_charts_hold_the_readings(plugin, tmp_path):
    write(tmp_path, made_up(0), made_up(4, r=3.0, scale=0.2), looked(5, nlm_alignment=0.7))
    answer = told(plugin, "/series", run=".")["."]
    assert answer["charts"]["r"] == {"step": [0, 4], "r": [0.3, 3.0]}
    assert answer["charts"]["rates"]["lr_safe"] == [made_up(0).lr_safe, made_up(4, r=3.0).lr_safe]
    assert answer["charts"]["cost"]["cost_share"] == [None, None]
    assert answer["charts"]["alignment"] == {"step": [5], "nlm_alignment": [0.7]}
    assert answer["marks"] == [[4, 3.0, 0.2, 1]] and answer["targets"] == [1.0]


ODD = {"not a number": (math.nan, "nan"), "infinite": (math.inf, "inf")}


@pytest.mark.parametrize("odd", ODD)
def test_an_r_that_is_no_number_is_a_mark_without_a_point(plugin, tmp_path, odd):
    r, text = ODD[odd]
    write(tmp_path, made_up(0), made_up(1)._replace(r=r, tau=r, rho=r, spread=r, scale=0.0))
    answer = told(plugin, "/series", run=".")["."]
    assert answer["charts"]["r"]["r"] == [0.3, None] and answer["marks"] == [[1, text, 0.0, 1]]
    assert told(plugin, "/runs")["runs"][0]["r"] == text


def test_a_view_has_its_own_points_and_marks(plugin, tmp_path):
    write(tmp_path, *(made_up(step, r=2.0 if step % 10 == 0 else 0.3) for step in range(100)))
    answer = told(plugin, "/series", **{"run": ".", "from": 15, "to": 35, "buckets": 100})["."]
    assert answer["charts"]["r"]["step"] == list(range(14, 37))
    assert [mark[0] for mark in answer["marks"]] == [20, 30]


def test_only_what_grew_has_another_version(plugin, tmp_path):
    for name in "ab":
        write(tmp_path / name, made_up(0))
    before = {run["name"]: run["version"] for run in told(plugin, "/runs")["runs"]}
    write(tmp_path / "b", made_up(1))
    after = {run["name"]: run["version"] for run in told(plugin, "/runs")["runs"]}
    assert after["a"] == before["a"] and after["b"] != before["b"]


def test_a_run_that_went_back_has_its_later_steps_only(plugin, tmp_path):
    write(tmp_path, *(made_up(step, r=5.0) for step in range(10)))
    assert len(told(plugin, "/series", run=".")["."]["marks"]) == 10
    write(tmp_path, *(made_up(step) for step in range(4, 12)))
    answer = told(plugin, "/series", run=".")["."]
    assert [mark[0] for mark in answer["marks"]] == [0, 1, 2, 3]
    assert answer["charts"]["r"]["r"] == [5.0] * 4 + [0.3] * 8


def test_events_by_kind_word_and_step(plugin, tmp_path):
    write(tmp_path / "a", *(Event(step, "clamp", f"step {step}: r = 2") for step in range(10)))
    write(tmp_path / "b", Event(3, "skipped", "step 3 moved Nothing"))
    everything = told(plugin, "/events", run=["a", "b"])
    assert everything["counts"] == {"clamp": 10, "skipped": 1} and everything["total"] == 11
    assert [event["step"] for event in everything["events"]] == [9, 8, 7, 6, 5, 4, 3, 3, 2, 1, 0]
    (one,) = told(plugin, "/events", run=["a", "b"], text="nothing")["events"]
    assert one.items() >= {"run": "b", "step": 3, "kind": "skipped", "message": "step 3 moved Nothing"}.items()
    assert told(plugin, "/events", run=["a", "b"], kind="skipped")["total"] == 1
    assert told(plugin, "/events", **{"run": "a", "from": 2, "to": 4})["total"] == 3
    assert len(told(plugin, "/events", run="a", limit=3)["events"]) == 3


def test_it_shows_itself_as_soon_as_there_is_a_run(plugin, tmp_path):
    assert not plugin.is_active() and told(plugin, "/runs")["runs"] == []
    write(tmp_path / "deep" / "down", made_up(0))
    assert plugin.is_active() and [run["name"] for run in told(plugin, "/runs")["runs"]] == ["deep/down"]


def test_a_run_that_is_deleted_goes(plugin, tmp_path):
    for name in "ab":
        write(tmp_path / name, made_up(0))
    told(plugin, "/runs")
    (tmp_path / "a" / "stepguard.jsonl").unlink()
    assert [run["name"] for run in told(plugin, "/runs")["runs"]] == ["b"]


def test_a_folder_that_is_not_there_yet(tmp_path):
    plugin = StepGuardPlugin(SimpleNamespace(logdir=str(tmp_path / "later")))
    assert not plugin.is_active() and told(plugin, "/runs")["runs"] == []


def test_many_may_ask_at_once_while_it_grows(plugin, tmp_path):
    lines, failed = JsonLines(tmp_path), []

    def look():
        seen = 0
        for _ in range(20):
            answer = told(plugin, "/series", run=".", buckets=4000).get(".")
            steps = answer["charts"]["r"]["step"] if answer else []
            if steps != list(range(len(steps))) or len(steps) < seen:
                failed.append(steps)
            seen = len(steps)

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for step in range(500):
        lines.reading(made_up(step))
    for thread in threads:
        thread.join()
    lines.close()
    assert not failed and len(told(plugin, "/series", run=".")["."]["charts"]["r"]["step"]) == 500


def test_a_browser_is_told_what_each_answer_is(plugin, tmp_path):
    write(tmp_path, made_up(0))
    for route in plugin.get_plugin_apps():
        answer = get(plugin, route)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        kind = {".js": "text/javascript", ".css": "text/css"}.get(Path(route).suffix, "application/json")
        assert answer.content_type == f"{kind}; charset=utf-8"
    assert plugin.frontend_metadata().es_module_path in plugin.get_plugin_apps()


def test_before_anything_was_read_it_is_not_said_to_be_all(tmp_path, monkeypatch):
    JsonLines(tmp_path).close()
    may_go_on, read_runs = threading.Event(), store.read_runs
    monkeypatch.setattr(store, "read_runs", lambda *given, **more: may_go_on.wait(20) and read_runs(*given, **more))
    plugin = StepGuardPlugin(SimpleNamespace(logdir=str(tmp_path)))
    assert plugin._store.read() == 0.0
    may_go_on.set()
    plugin._store._reader.join()
    assert told(plugin, "/runs")["read"] == 1.0


def test_an_error_is_told_to_the_page_and_goes_no_further(plugin, monkeypatch):
    monkeypatch.setattr(store, "read_runs", lambda *_, **__: 1 / 0)
    answer = get(plugin, "/runs")
    assert answer.status_code == 500 and answer.json == {"error": "ZeroDivisionError: division by zero"}


def test_the_chart_library_comes_with_its_licence():
    assert "MIT" in (STATIC / "uPlot.LICENSE").read_text()
    assert "v1.6.32" in (STATIC / "uPlot.iife.min.js").read_text()[:100]


def test_tensorboard_finds_it_by_its_entry_point():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    where = f"{StepGuardLoader.__module__}:{StepGuardLoader.__name__}"
    assert f'[project.entry-points.tensorboard_plugins]\nstepguard = "{where}"\n' in project


def test_a_tab_that_cannot_be_made_is_none_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr("stepguard.views.tensorboard.plugin.Store", None)
    assert StepGuardLoader().load(SimpleNamespace(logdir="")) is None
    assert "no StepGuard tab" in caplog.text


BREAKS = {
    "a module that is missing": "sys.modules['stepguard.records'] = None",
    "a plugin that cannot be made": "from stepguard.views.tensorboard import plugin; plugin.Store = None",
    "a look at the folder": "from stepguard.views.tensorboard import plugin; plugin.Store.there = lambda self: 1 / 0",
    "nothing": "",
}
ASKS = """
import json, sys, urllib.request
{breaks}
from tensorboard import default, program
from stepguard.views.tensorboard.loader import StepGuardLoader
plugins = [p for p in default.get_plugins() if p is not StepGuardLoader]
board = program.TensorBoard(plugins=[*plugins, StepGuardLoader])
board.configure(["", "--logdir", sys.argv[1], "--port", "0", "--load_fast", "false"])
url = board.launch()
listed = json.load(urllib.request.urlopen(url + "data/plugins_listing"))
print(json.dumps({{name: plugin["enabled"] for name, plugin in listed.items()}}))
"""


@pytest.mark.parametrize("breaks", BREAKS)
def test_tensorboard_lives_on_whatever_breaks_in_it(tmp_path, breaks):
    write(tmp_path, made_up(0))
    code = ASKS.format(breaks=BREAKS[breaks])
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    listed = json.loads(done.stdout.splitlines()[-1])
    assert "timeseries" in listed and listed.get("stepguard", False) == (breaks == "nothing")
    assert "Traceback" in done.stderr or breaks == "nothing"  # it is told why
