"""The post-mortem as one HTML file: whole, alone, and with nothing in it that its records could have smuggled in."""

import html.parser
import json
import math
import re

import pytest
from made_up_runs import CULPRIT, calm, jump, jumped, look, reading, run_of

from stepguard.diagnosis import post_mortem
from stepguard.diagnosis.advice import Advice
from stepguard.records import breach_event
from stepguard.views.report.page import page
from stepguard.views.report.told import Told

EVIL = "</script><img src=x onerror=alert(1)> & \"quotes\" 'single' ]]>"
VOID = {"meta", "img", "br", "link", "input"}


def written(*runs):
    return page([Told(run, post_mortem(run)) for run in runs])


class Outline(html.parser.HTMLParser):
    """Which elements are open, and all that was there."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


RUNS = {
    "a jump": [jumped()],
    "calm": [calm()],
    "nothing": [run_of()],
    "several": [jumped(), calm(), run_of()],
    "a monitor alone": [run_of(looks=[look(0, 9.0), look(9, -1.0, collapse=0.5)])],
}


@pytest.mark.parametrize("case", RUNS)
def test_every_element_that_is_opened_is_closed(case):
    outline = Outline(written(*RUNS[case]))
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.found if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("case", RUNS)
def test_it_loads_nothing(case):
    text = written(*RUNS[case])
    for _, attributes in Outline(text).found:
        assert not {"src", "srcset", "background"} & attributes.keys()
        assert attributes.get("href", "#")[0] == "#"
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|importScripts|\bimport\b *[({\"']|WebSocket", text)
    assert "default-src 'none'" in text


@pytest.mark.parametrize("case", RUNS)
def test_it_is_small(case):
    assert len(written(*RUNS[case]).encode()) < 200_000


def test_a_long_run_is_no_larger_than_three_hundred_kilobytes():
    steps = range(30_000)
    readings = [reading(s, r=abs(math.sin(s)) + (s % 3 == 0), lr=0.1 + 0.01 * math.cos(s)) for s in steps]
    looks = [look(s, 9 + math.sin(s)) for s in steps]
    run = run_of(readings, [breach_event(r) for r in readings[:3000] if r.breach], looks)
    text = written(run)
    assert len(text.encode()) < 300_000
    marks = data_of(text)[0]["r"]["marks"]
    assert sum(mark[3] for mark in marks) == sum(r.breach for r in readings) and len(marks) <= 1501


def test_what_comes_from_records_is_text_and_never_markup():
    readings, events = jump()
    data = CULPRIT._replace(parameters={EVIL: 62.8}, layers={EVIL: 62.8}, softmax=EVIL).event()
    run = run_of(readings, [events[0], data], [look(s, 9.0, dtype=EVIL) for s in range(3)], name=EVIL)
    run.notices.append(EVIL)
    run.starts[0] = {**run.starts[0], "model": EVIL, "optimizer": EVIL}
    post = post_mortem(run)._replace(verdict=EVIL, advice=(Advice(EVIL, EVIL),))
    text = page([Told(run, post)])
    outline = Outline(text)
    assert outline.open == [] and not any(tag == "img" for tag, _ in outline.found)
    assert sum(EVIL in part for part in outline.texts) >= 8
    limits = data_of(text)[0]["headroom"]["limits"]  # the end of the data is where it was meant to be
    assert limits[0]["label"] == f"collapse in {EVIL}"


def test_data_of_the_charts_has_every_breach_and_the_extremes():
    readings, events = jump()
    (found,) = data_of(written(run_of(readings, events)))
    assert found["r"]["marks"] == [[40.0, 20.0, 1.0, 1]] and found["r"]["note"]["step"] == 40
    assert max(found["r"]["lines"][0]["values"]) == 20.0 and found["r"]["step"] == list(range(60))
    assert {"r", "lengths", "rates", "zoom"} == found.keys()
    assert max(found["rates"]["lines"][0]["values"]) == 10.0


def test_charts_are_where_their_data_is():
    outline = Outline(written(jumped(), calm()))
    figures = [a for tag, a in outline.found if tag == "figure"]
    data = data_of(written(jumped(), calm()))
    assert {(f["data-run"], f["data-chart"]) for f in figures} == {
        (str(i), name) for i, charts in enumerate(data) for name in charts
    }


def test_the_table_of_runs_leads_to_each():
    found = Outline(written(jumped(), calm())).found
    ids = {a["id"] for _, a in found if "id" in a}
    links = [a["href"] for tag, a in found if tag == "a"]
    assert links == ["#section-0-0", "#section-1-0"] and {link[1:] for link in links} <= ids


def test_without_a_script_there_is_a_chart_of_letters():
    assert re.search(r"<noscript><pre>[^<]*█[^<]*</pre></noscript>", written(jumped()))


def test_bars_go_from_a_common_zero():
    styles = [a["style"] for tag, a in Outline(written(jumped())).found if tag == "div" and "style" in a]
    # Layers: head 70, body -8.2, left over 1 of 78.2 in all.
    assert "margin-left:10.5%;width:89.5%" in styles and "margin-left:0.0%;width:10.5%" in styles
