"""Every Python block of the README and the docs runs, page by page, as a reader would type it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")  # Lightning's own notices about small runs
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_and_metric_is_explained():
    import stepguard
    from stepguard.records.metrics import BREACH, COLLAPSE_METRICS, METRICS

    api = (ROOT / "docs" / "api.md").read_text()
    assert [n for n in stepguard.__all__ if n not in api] == []
    charts = (ROOT / "docs" / "charts.md").read_text()
    assert [m.key() for m in (*METRICS, *COLLAPSE_METRICS, BREACH) if m.key() not in charts] == []
