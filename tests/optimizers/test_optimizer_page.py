"""docs/optimizers.md has a row for every optimizer and none besides."""

from optimizers.zoo import CASES
from optimizers.zoo_page import PAGE


def test_the_page_has_every_optimizer():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    names = [line.split("|")[1].strip() for line in lines if not line.startswith("| optimizer ")]
    assert names == list(CASES), "write it anew with PYTHONPATH=tests python -m optimizers.zoo_page"
