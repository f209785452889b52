"""The post-mortem's page in a headless Chromium: charts drawn, nothing complained of, nothing asked of anybody."""

import pytest
from browser import asked, browser, complaints, scheme, wait
from made_up_runs import jump, look, run_of

from stepguard.diagnosis import post_mortem
from stepguard.views.report.page import page
from stepguard.views.report.told import Told

ActionChains = pytest.importorskip("selenium.webdriver").ActionChains
pytestmark = pytest.mark.browser
INK = """
const canvas = document.querySelectorAll("figure canvas")[arguments[0]];
const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
const colours = new Set();
for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 250) colours.add(data.slice(i, i + 3).join(","));
return [...colours];
"""
BLUE = {"light": "0,114,178", "dark": "86,180,233"}


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


@pytest.fixture
def opened(chromium, tmp_path):
    readings, events = jump()
    run = run_of(readings, events, [look(s, 12.0 - s / 10) for s in range(0, 60, 10)], name="<b>one</b>")
    (tmp_path / "report.html").write_text(page([Told(run, post_mortem(run))]), encoding="utf-8")
    complaints(chromium), asked(chromium)  # those of before
    chromium.get((tmp_path / "report.html").as_uri())
    wait(lambda: chromium.execute_script("return window.stepguardReport?.plots.length"))
    return chromium


def test_charts_are_drawn_in_light_and_in_dark(opened):
    for value, blue in BLUE.items():
        scheme(opened, value)
        wait(lambda blue=blue: all(blue in opened.execute_script(INK, i) for i in range(5)))
    scheme(opened, "light")
    assert opened.execute_script("return window.stepguardReport.plots.length") == 5


def test_every_breach_is_marked(opened):
    marked = opened.execute_script("return document.querySelector('[data-chart=r]').dataset.breach")
    assert marked == "1" and "1 ▲ let through" in opened.find_element("css selector", "[data-chart=r]").text


def test_nothing_is_asked_for_and_nothing_complained_of(opened):
    assert {address.split(":")[0] for address in asked(opened)} == {"file"} and len(opened.window_handles) == 1
    assert complaints(opened) == []
    assert opened.find_element("tag name", "h1").text == "Run <b>one</b>"


def test_a_hover_tells_the_values(opened):
    over = opened.find_element("css selector", "[data-chart=rates] .u-over")
    ActionChains(opened).move_to_element(over).perform()
    values = opened.find_elements("css selector", "[data-chart=rates] .u-value")
    wait(lambda: [value.text for value in values[1:3]] == ["0.1", "0.1"])
    assert int(values[0].text) in (29, 30)  # the middle of 60 steps


@pytest.mark.parametrize("width", [360, 1000])
def test_nothing_is_wider_than_the_window(opened, width):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        wait(lambda: opened.execute_script("return document.documentElement.scrollWidth") == width)
        canvases = (
            "return Math.max(...[...document.querySelectorAll('canvas')].map((c) => c.getBoundingClientRect().right))"
        )
        wait(lambda: opened.execute_script(canvases) <= width)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_prints_in_light_on_white_paper(opened):
    scheme(opened, "dark")
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert BLUE["light"] in opened.execute_script(INK, 0)
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert BLUE["dark"] in opened.execute_script(INK, 0)
    scheme(opened, "light")
