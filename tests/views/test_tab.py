"""The StepGuard tab as a person meets it: a real TensorBoard, real runs, a headless Chromium."""

import json
import time
from urllib.parse import urlparse

import pytest
from browser import asked, browser, complaints, dashboard, scheme, visit, wait
from recorded import made_up, many, train

from stepguard.records import JsonLines, read_runs

pytestmark = pytest.mark.browser
# Of softmax collapse there is one warning a run, which is what the spike is for.
quiet = pytest.mark.filterwarnings("ignore:stepguard.*softmax collapse")


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, action in {"guarded": "clamp", "observed": "observe"}.items():
        train(folder / name, action)
    return folder


@pytest.fixture(scope="module")
def url(runs):
    with dashboard(runs) as address:
        yield address


@pytest.fixture
def page(chromium, url):
    scheme(chromium, "light")
    visit(chromium, url)
    wait(lambda: chromium.execute_script("return stepguard.charts[0].element.dataset.breach"))
    return chromium


def js(page, expression, *arguments):
    return page.execute_script(f"return {expression}", *arguments)


def element(page, selector):
    return page.find_element("css selector", selector)


def actions(page):
    from selenium.webdriver.common.action_chains import ActionChains

    return ActionChains(page)


def press(page, *keys):
    for key in keys:
        actions(page).send_keys(key).perform()


GONE_TOO_FAR = {"kind": "event", "time": 1.0, "step": 70, "event": "breach", "message": "step 70 went too far"}
VISIBLE = "stepguard.charts.filter(chart => chart.plot)"


@quiet
def test_the_tab_is_there_and_every_chart_has_lines(page):
    assert js(page, "window.parent.location.hash") == "#stepguard"
    assert js(page, f"{VISIBLE}.map(chart => chart.kind.name)") == [
        "r", "lengths", "rates", "headroom", "shares", "alignment", "cost", "monitor-cost",
    ]  # fmt: skip
    assert [item.text for item in page.find_elements("css selector", "aside .name")] == ["guarded", "observed"]


def test_every_step_beyond_the_target_is_marked_as_the_records_have_it(page, runs):
    marks = js(page, "Object.fromEntries(stepguard.runs.shown().map(run => [run.name, run.data.marks]))")
    for run in read_runs(runs):
        assert marks[run.name] == [[r.step, r.r, r.scale, 1] for r in run.readings if r.breach]
    counts = dict(js(page, "{...stepguard.charts[0].element.dataset}"))
    scales = [r.scale for run in read_runs(runs) for r in run.readings if r.breach]
    assert counts["breach"] == str(scales.count(1.0)) and int(counts["breach"]) > 5
    assert counts["clamp"] == str(sum(0 < scale < 1 for scale in scales)) and int(counts["clamp"]) > 5


def test_the_marks_are_on_the_picture(page):
    """The middle of each triangle has the colour of its run."""
    seen = """(() => {
        const u = stepguard.charts[0].plot;
        const { data, width } = u.ctx.getImageData(0, 0, u.ctx.canvas.width, u.ctx.canvas.height);
        return stepguard.runs.shown()[1].data.marks.map(([step, r]) => {
            const [x, y] = [u.valToPos(step, "x", true), u.valToPos(r, "y", true)].map(Math.round);
            return data.slice(4 * (y * width + x), 4 * (y * width + x) + 3).join();
        });
    })()"""
    assert set(js(page, seen)) == {"213,94,0"}


def test_hover_tells_the_exact_value(page, runs):
    u = element(page, "#chart-r .u-over")
    across = js(page, "stepguard.charts[0].plot.valToPos(25, 'x')")
    actions(page).move_to_element_with_offset(u, round(across) - u.size["width"] // 2, 0).perform()
    tip = wait(lambda: element(page, "#chart-r .tip").text)
    for run in read_runs(runs):
        assert str(run.readings[25].r) in tip and run.name in tip
    assert tip.startswith("step 25\n") and "let through" in tip and "step × " in tip
    assert js(page, f"{VISIBLE}.map(chart => chart.plot.cursor.idx)") != [None] * 8
    assert element(page, "#chart-cost .tip").is_displayed()  # the others follow


def test_a_brush_zooms_all_charts_and_a_double_click_undoes_it(page):
    u = element(page, "#chart-lengths .u-over")
    actions(page).move_to_element_with_offset(u, -50, 0).click_and_hold().move_by_offset(100, 0).release().perform()
    low, high = wait(lambda: js(page, "stepguard.view"))
    assert 0 < low < high < 59
    assert js(page, f"{VISIBLE}.map(chart => [chart.plot.scales.x.min, chart.plot.scales.x.max])") == [[low, high]] * 8
    wait(lambda: js(page, "stepguard.runs.shown()[0].data.charts.r.step[0]") > 0)  # asked for anew
    actions(page).double_click(element(page, "#chart-cost .u-over")).perform()
    wait(lambda: js(page, "stepguard.view === null && stepguard.runs.shown()[0].data.charts.r.step[0] === 0"))
    assert js(page, f"{VISIBLE}.map(chart => chart.plot.scales.x.max)") == [59] * 8


def test_events_are_filtered_and_lead_to_their_step(page, runs):
    count = {run.name: len(run.events) for run in read_runs(runs)}
    assert element(page, "#events .total").text == f"{sum(count.values())} events"
    element(page, "[data-kind=clamp]").click()
    kinds = "[...document.querySelectorAll('#events tbody tr')].map(row => row.cells[2]?.textContent)"
    wait(lambda: set(js(page, kinds)) == {"clamp"})
    element(page, "#events input[type=search]").send_keys("step 22:")
    wait(lambda: element(page, "#events .total").text == "1 events")
    element(page, "#events tbody button").click()
    low, high = wait(lambda: js(page, "stepguard.view"))
    assert low < 22 < high and high - low < 59
    assert element(page, "#chart-r [role=status]").get_attribute("textContent").startswith("Step 22: ")


def test_all_of_it_goes_by_keyboard(page):
    keys = pytest.importorskip("selenium.webdriver").Keys
    js(page, "document.querySelector('#chart-r').focus()")
    press(page, keys.HOME, keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    said = element(page, "#chart-r [role=status]").get_attribute("textContent")
    assert said.startswith("Step 2: ") and "guarded" in said
    press(page, "+")
    assert wait(lambda: js(page, "stepguard.view"))
    press(page, keys.ESCAPE)
    wait(lambda: js(page, "stepguard.view === null"))
    reached = set()
    for _ in range(30):
        press(page, keys.TAB)
        reached.add(js(page, "document.activeElement.id || document.activeElement.closest('[id]')?.id"))
    assert {"chart-lengths", "chart-rates", "chart-headroom", "chart-cost", "events"} <= reached
    unnamed = """[...document.querySelectorAll('input, select, button')].filter(
        (e) => !e.hidden && !e.labels?.length && !e.ariaLabel && !e.textContent)"""
    assert js(page, unnamed) == []


def test_runs_can_be_left_out(page):
    element(page, "[data-run=observed]").click()
    wait(lambda: js(page, "stepguard.charts[0].runs.map(run => run.name)") == ["guarded"])
    assert element(page, "#chart-r").get_attribute("data-breach") == "0"


def test_light_and_dark_follow_system_tensorboard_and_the_switch(page):
    def back():
        return js(page, "getComputedStyle(document.body).backgroundColor")

    light = back()
    js(page, "void window.parent.document.body.classList.add('dark-mode')")  # as its switch does
    wait(lambda: back() != light)
    dark = back()
    element(page, "#theme option[value=light]").click()
    assert back() == light
    element(page, "#theme option[value=auto]").click()
    assert back() == dark
    js(page, "void window.parent.document.body.classList.remove('dark-mode')")
    wait(lambda: back() == light)


def test_what_is_written_arrives_within_ten_seconds_and_the_zoom_stays(page, runs):
    js(page, "void stepguard.zoom(5, 40)")
    lines = JsonLines(runs / "later")
    lines.reading(made_up(7))
    lines.close()
    with open(runs / "guarded" / "stepguard.jsonl", "ab") as file:  # as the process that still trains does
        for record in ({"kind": "reading", "time": 1.0, **made_up(70, r=9.0)._asdict()}, GONE_TOO_FAR):
            file.write(json.dumps(record).encode() + b"\n")
    wait(lambda: js(page, "stepguard.charts[0].runs.map(run => run.name)") == ["guarded", "observed", "later"], 10)
    wait(lambda: "step 70 went too far" in element(page, "#events").text)
    assert js(page, "stepguard.view") == [5, 40]
    js(page, "void stepguard.reset()")
    wait(lambda: js(page, "stepguard.runs.all.get('guarded').data.marks.at(-1)") == [70, 9, 1, 1])


def test_an_empty_folder_tells_what_to_do_and_fills_by_itself(chromium, tmp_path):
    with dashboard(tmp_path) as url:
        visit(chromium, url)
        assert "log_dir=" in wait(lambda: element(chromium, "#empty").text)
        train(tmp_path / "first", "observe", steps=3)
        wait(lambda: js(chromium, "!document.querySelector('#full').hidden && stepguard.charts[0].plot !== null"), 10)


@pytest.mark.slow
def test_a_million_readings_are_there_with_every_breach(chromium, tmp_path):
    beyond = set(range(12_345, 1_000_000, 54_321))
    many(tmp_path, 1_000_000, beyond)
    with dashboard(tmp_path) as url:
        began = time.monotonic()
        visit(chromium, url)
        wait(lambda: js(chromium, "stepguard.charts[0].element.dataset.breach") == str(len(beyond)), 60)
        print(f"a million readings after {time.monotonic() - began:.1f} s")  # how long depends on who else is here
        steps = js(chromium, "stepguard.runs.shown()[0].data.charts.r.step")
        assert len(steps) < 9000 and beyond <= set(steps)
        js(chromium, "void stepguard.zoom(500_000, 500_100)")
        wait(lambda: js(chromium, "stepguard.runs.shown()[0].data.charts.r.step") == [*range(499_999, 500_102)])


def test_last_nothing_was_complained_of_and_nothing_left_this_machine(chromium, url):
    """Of all the pages above, in this one browser."""
    assert complaints(chromium) == []
    hosts = {urlparse(address).hostname for address in asked(chromium) if address.startswith(("http", "ws"))}
    assert hosts == {"localhost"}
