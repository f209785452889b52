"""In a headless Chromium: what a culprit folds out to, and runs of which only TensorBoard's scalars tell."""

import math

import pytest
from browser import browser, complaints, dashboard, visit, wait
from recorded import made_up, train
from torch.utils.tensorboard import SummaryWriter

from stepguard.records import Culprit, JsonLines, read_runs

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore:stepguard.*softmax collapse")]

NAMES = [f"blocks.{i}.weight" for i in range(12)]
PARTS = {name: (-1) ** i * (12.0 - i) for i, name in enumerate(NAMES)}
SPREAD = sum(PARTS.values()) + 0.5 - 0.75
CULPRIT = Culprit(
    step=7,
    r=SPREAD / math.pi,
    spread=SPREAD,
    sample=5,
    position=[0, 5],
    softmax="cross_entropy of GPT",
    rising=1,
    falling=0,
    label=3,
    batch=1,
    batches=4,
    parameters=PARTS,
    others=0.5,
    groups={"body": SPREAD + 3.75, "head": -3.0},
    layers={name: value + 0.5 / 12 for name, value in PARTS.items()},
    remainder=-0.75,
)


@pytest.fixture(scope="module")
def chromium():
    with browser() as driver:
        yield driver


@pytest.fixture
def page(chromium, tmp_path):
    lines = JsonLines(tmp_path / "made up")
    for step in range(20):
        lines.reading(made_up(step, r=2.0 if step == 7 else 0.3))
    lines.event(CULPRIT.event())
    lines.close()
    with SummaryWriter(tmp_path / "scalars") as writer:
        for step in range(10):
            writer.add_scalar("stepguard/r_breach", 5.0, step)
    with dashboard(tmp_path) as url:
        visit(chromium, url)
        wait(lambda: js(chromium, "document.querySelector('.unfold')"))
        yield chromium


def js(page, expression, *arguments):
    return page.execute_script(f"return {expression}", *arguments)


def texts(page, selector):
    return js(page, "[...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)


def number(text):
    return float(text.replace("−", "-").rstrip("%"))


def test_a_culprit_folds_out_by_keyboard_into_bars_that_add_up(page):
    keys = pytest.importorskip("selenium.webdriver").Keys
    button = page.find_element("css selector", ".unfold")
    button.send_keys(keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    assert js(page, "document.getElementById(arguments[0]) !== null", button.get_attribute("aria-controls"))
    assert texts(page, ".parts thead th:first-child") == ["Layers", "Parameter groups", "Parameters"]
    for table in range(3):
        names, nats, shares = (
            js(page, f"[...document.querySelectorAll('.parts tbody')[{table}].rows].map(r => r.cells[{i}].textContent)")
            for i in (0, 2, 3)
        )
        assert len(names) <= 10 and names[-1] == "left over"
        assert sum(map(number, nats)) == pytest.approx(SPREAD, abs=0.01)
        assert sum(map(number, shares)) == pytest.approx(100, abs=5)  # each is rounded
    button.send_keys(keys.ENTER)
    assert button.get_attribute("aria-expanded") == "false" and not texts(page, ".parts")


def test_bars_go_to_both_sides_of_a_zero_that_all_tables_share(page):
    page.find_element("css selector", ".unfold").click()
    found = js(
        page,
        """[...document.querySelectorAll('.parts .bar')].map(bar => {
        const [box, zero] = [bar.children[0].getBoundingClientRect(), bar.children[1].getBoundingClientRect()];
        return [bar.children[0].className, box.left - zero.left, box.right - zero.left, bar.offsetWidth,
                bar.closest('tr').cells[2].textContent];
    })""",
    )
    scale = {round(abs(right - left) / width / abs(number(nats)), 3) for _, left, right, width, nats in found}
    assert len({name for name, *_ in found}) == 2 and max(scale) - min(scale) < 0.002
    for name, left, right, _, nats in found:
        assert (name == "together") == (number(nats) < 0)
        assert abs(right if name == "together" else left) < 1.5


def test_what_is_folded_out_stays_when_something_new_comes(page, tmp_path):
    keys = pytest.importorskip("selenium.webdriver").Keys
    page.find_element("css selector", ".unfold").send_keys(keys.ENTER)
    lines = JsonLines(tmp_path / "made up")
    lines.event(CULPRIT._replace(step=30).event())
    lines.close()
    wait(lambda: len(texts(page, ".unfold")) == 2, 10)
    assert [text[0] for text in texts(page, ".unfold")] == ["▸", "▾"]
    assert js(page, "document.activeElement.textContent").startswith("▾")
    page.find_element("css selector", "[data-jump]").send_keys(keys.ARROW_DOWN)  # across the row that is folded out
    assert js(page, "document.activeElement.textContent") == "7"


def test_nothing_makes_the_page_longer_than_its_frame(page):
    whole = page.get_window_size()
    for width, height in ((1200, 700), (700, 700)):
        page.set_window_size(width, height)
        lengths = js(page, "[document.documentElement.scrollHeight, document.documentElement.clientHeight]")
        widths = js(page, "[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert lengths[0] <= lengths[1] and widths[0] <= widths[1]
    page.set_window_size(whole["width"], whole["height"])


def test_a_run_of_scalars_comes_by_itself_and_what_was_done_is_not_made_up(page):
    wait(lambda: set(texts(page, "aside .name")) == {"made up", "scalars"}, 15)
    wait(lambda: js(page, "stepguard.charts[0].runs.length") == 2)
    assert js(page, "{...stepguard.charts[0].element.dataset}") == {
        "breach": "1", "clamp": "0", "withheld": "0", "unknown": "0"
    }  # fmt: skip
    assert "no records" in js(page, "document.querySelector('.notice').title")


def test_of_real_runs_the_bars_add_up_too(chromium, tmp_path):
    train(tmp_path, "observe", steps=25)
    with dashboard(tmp_path) as url:
        visit(chromium, url)
        wait(lambda: js(chromium, "document.querySelector('.unfold')")).click()
        told = [Culprit.of(event) for event in read_runs(tmp_path)[0].events if event.kind == "culprit"]
        assert number(texts(chromium, ".parts tfoot td:nth-child(3)")[0]) == pytest.approx(told[-1].spread, rel=1e-3)
        nats = js(chromium, "[...document.querySelectorAll('.parts tbody')[0].rows].map(r => r.cells[2].textContent)")
        assert sum(map(number, nats)) == pytest.approx(told[-1].spread, rel=2e-3)


def test_last_nothing_was_complained_of(chromium):
    """Of all the pages above, in this one browser."""
    assert complaints(chromium) == []
