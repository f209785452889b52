"""The post-mortem as Markdown."""

import re

import pytest
from made_up_runs import calm, jumped, reading, run_of

from stepguard.diagnosis import post_mortem
from stepguard.views.report.markdown import markdown
from stepguard.views.report.told import Told


def written(*runs):
    return markdown([Told(run, post_mortem(run)) for run in runs])


def cells(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.parametrize("runs", [[jumped()], [calm()], [run_of()], [jumped(), calm()]])
def test_every_table_has_as_many_cells_in_each_row(runs):
    blocks = written(*runs).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    for lines in tables:
        assert len({len(cells(line)) for line in lines}) == 1 and len(lines) > 2
        assert re.fullmatch(r"(\| (:--|--:) )+\|", lines[1])
    assert tables or runs[0].readings == []


def test_it_has_the_verdict_a_chart_of_text_and_the_advice():
    text = written(jumped())
    assert "**step 40: r = 20 of 1: learning rate jump. " in text
    fence = text.split("```")[1]
    assert "█" in fence and fence.count("\n") == 9
    assert re.search(r"^1\. \*\*Look at what sets the learning rate at step 40", text, re.MULTILINE)


@pytest.mark.parametrize("runs", [[jumped()], [calm()], [run_of()], [jumped(), calm()]])
def test_there_is_one_empty_line_between_parts(runs):
    assert "\n\n\n" not in written(*runs) and not written(*runs).endswith("\n\n")


def test_headings_are_of_one_document():
    text = written(jumped(), calm())
    levels = [len(mark) for mark in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1 and levels.count(1) == 1 and levels.count(2) == 3 and set(levels) == {1, 2, 3}


def test_what_comes_from_records_stays_text():
    run = run_of([reading(0)], name="a|b <script> *c* `d` [e](f)")
    run.notices.append("<img src=x>\n# no heading")
    text = written(run)
    assert r"a\|b \<script\> \*c\* \`d\` \[e\](f)" in text
    assert r"\<img src=x\> \# no heading" in text and "\n# no" not in text
