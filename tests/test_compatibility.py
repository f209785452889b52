"""docs/compatibility.md has a line for every test that it is about, and none besides."""

import pytest
from compatibility import PAGE, SECTIONS, TESTS, lines


def test_the_page_has_every_test(request):
    wanted = {TESTS / file for files in SECTIONS.values() for file in files}
    if not wanted <= {item.path for item in request.session.items} or request.config.getoption("keyword"):
        pytest.skip("only a run of all tests can tell")
    _, _, written = PAGE.read_text().partition("\n## ")
    assert f"\n## {written}".splitlines() == lines(request.session.items), (
        "write it anew with PYTHONPATH=tests python -m compatibility"
    )
