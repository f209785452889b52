"""The post-mortem as JSON: the numbers that are told everywhere else."""

import json
import math
import re
from pathlib import Path

import pytest
from made_up_runs import CULPRIT, calm, jumped, look, reading, run_of

from stepguard.diagnosis import post_mortem
from stepguard.views.report.data import as_json
from stepguard.views.report.markdown import markdown
from stepguard.views.report.told import Told

PAGE = Path(__file__).parents[2] / "docs" / "report.md"


def parsed(*runs):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    text = as_json([Told(run, post_mortem(run)) for run in runs])
    return json.loads(text, parse_constant=refuse)


def test_what_happened():
    found = parsed(jumped(), calm())
    assert found["stepguard_report"] == 1
    spoiled, healthy = found["runs"]
    assert [spoiled[key] for key in ("name", "cause", "spoiled", "step", "began", "r")] == [
        "jumped", "learning rate jump", True, 40, 40, 20.0
    ]  # fmt: skip
    assert [healthy[key] for key in ("cause", "spoiled", "step", "began", "r")] == ["healthy", False, None, None, None]
    assert spoiled["culprits"] == [CULPRIT.as_dict()] and healthy["culprits"] == []
    assert spoiled["factors"][0]["name"] == "learning rate" and spoiled["factors"][0]["at"] == 10.0
    assert sum(factor["share"] for factor in spoiled["factors"]) == pytest.approx(1)
    assert spoiled["findings"][0]["serious"] and spoiled["findings_in_all"] == 1


def test_the_numbers_are_those_of_the_text():
    run = jumped()
    text, (found,) = markdown([Told(run, post_mortem(run))]), parsed(run)["runs"]
    assert f"**{found['verdict']}**" in text
    own = next(target for target in found["targets"] if target["own"])
    assert f"| 1 (this run) | {own['beyond']} | {own['share']:.1%} | {own['factor']:g} |" in text
    assert (
        f"largest r that was asked for is {found['done']['asked']['r']:g}, at step {found['done']['asked']['step']}"
        in text
    )
    for item in found["advice"]:
        assert re.sub(r"[\"*_]", "", item["because"][1:15]) in re.sub(r"[\"*_\\]", "", text)


def test_what_is_not_known_is_null_and_what_is_infinite_says_so():
    run = run_of([reading(s, math.inf if s == 20 else 0.3, scale=1.0) for s in range(30)], looks=[look(0, 9.0)])
    (found,) = parsed(run)["runs"]
    assert found["r"] == "inf" and found["softmax"]["alignment"] is None and found["cost"] is None


def test_a_run_without_anything_has_the_same_keys():
    empty, full = parsed(run_of(), jumped())["runs"]
    assert empty.keys() == full.keys() and empty["cause"] == "unknown" and empty["done"] is None


def test_every_key_is_explained():
    (found,) = parsed(jumped())["runs"]
    page = PAGE.read_text()
    parts = ("about", "done", "softmax", "headroom", "cost")
    keys = [*found, *(key for part in parts for key in found[part] or ()), *found["targets"][0], *found["factors"][0]]
    keys += [*found["findings"][0], *found["headroom"]["phases"][0], *found["advice"][0], *found["around"][0]]
    assert [key for key in keys if f"`{key}`" not in page] == []
