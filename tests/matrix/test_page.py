"""docs/models.md has a row for every case and none besides."""

from matrix.page import PAGE, SECTIONS, start


def test_the_page_has_every_case():
    wanted = sorted(start(case) for cases in SECTIONS.values() for case in cases)
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| case")]
    assert sorted("|".join(line.split("|")[:3]) + "|" for line in lines) == wanted, (
        "write it anew with PYTHONPATH=tests python -m matrix.page"
    )
