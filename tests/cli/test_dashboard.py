"""``stepguard dashboard``: says where it is, and what to do where it cannot be."""

import json
import socket
import subprocess
import sys
import urllib.request

import pytest
from browser import dashboard

from stepguard.cli import main
from stepguard.records import Event, JsonLines


def test_it_serves_the_tab_on_the_folder(tmp_path):
    lines = JsonLines(tmp_path / "mine")
    lines.event(Event(3, "skipped", "step 3 moved nothing"))
    lines.close()
    with dashboard(tmp_path) as url:
        assert url.endswith("/#stepguard")
        with urllib.request.urlopen(url.replace("#stepguard", "data/plugin/stepguard/runs")) as answer:
            assert [run["name"] for run in json.load(answer)["runs"]] == ["mine"]


def test_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["dashboard", str(tmp_path / "nowhere")])
    assert "there is no folder" in (err := capsys.readouterr().err) and "give the log_dir of a run" in err


def test_a_port_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "stepguard.cli", "dashboard", str(tmp_path), "--port", port, "--no-browser"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "already in use; choose another --port" in done.stderr
