from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files

from stepguard.views.report.blocks import Block, Chart, Facts, Grid, Items, Say, Section, Verdict
from stepguard.views.report.markdown import text_chart
from stepguard.views.report.pictures import Picture, pictures
from stepguard.views.report.sections import sections, summary
from stepguard.views.report.told import Told

_TAB = files("stepguard.views.tensorboard") / "static"
_OURS = files("stepguard.views.report") / "static"
_NOTHING_ELSE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""What a browser shall load for the page: nothing, for all is in it."""


def page(told: Sequence[Told]) -> str:
    """The post-mortem of runs as one HTML file, which asks nobody for anything."""
    drawn = [pictures(each) for each in told]
    body: list[str] = []
    if len(told) > 1:
        body += _section(summary([each.post for each in told]), told[0], {}, "all")
    for i, (each, charts) in enumerate(zip(told, drawn, strict=True)):
        body += ["<article>"]
        for j, section in enumerate(sections(each.post)):
            body += _section(section, each, charts, f"{i}-{j}", number=i)
        body += ["</article>"]
    return "\n".join([*_head(told), "<main>", *body, "</main>", *_scripts(drawn), "</body>", "</html>", ""])


def _head(told: Sequence[Told]) -> Iterator[str]:
    name = told[0].post.about.name if len(told) == 1 else f"{len(told)} runs"
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_ELSE}">'
    yield '<meta name="color-scheme" content="light dark">'
    yield f"<title>stepguard: {escape(name)}</title>"
    yield f"<style>{(_TAB / 'uPlot.min.css').read_text()}</style>"
    yield f"<style>{(_OURS / 'report.css').read_text()}</style>"
    yield "</head>"
    yield "<body>"


def _scripts(drawn: Sequence[dict[str, Picture]]) -> Iterator[str]:
    # Of JSON in a page only "<" could end it.
    data = json.dumps(drawn, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    yield f'<script type="application/json" id="data">{data}</script>'
    yield f"<!--\n{(_TAB / 'uPlot.LICENSE').read_text()}-->"
    yield f"<script>{(_TAB / 'uPlot.iife.min.js').read_text()}</script>"
    yield f"<script>(() => {{\n{_alone('drawing.js')}\n{(_OURS / 'report.js').read_text()}\n}})();</script>"


def _alone(name: str) -> str:
    """A module of the tab as a part of a script: report.js has what it would import."""
    lines = (_TAB / name).read_text().splitlines()
    return "\n".join(line.removeprefix("export ") for line in lines if not line.startswith("import "))


def _section(
    section: Section, told: Told, charts: dict[str, Picture], anchor: str, number: int | None = None
) -> Iterator[str]:
    first = isinstance(section.blocks[0], Verdict) or number is None
    yield f'<section id="section-{anchor}">'
    yield f"<{'h1' if first else 'h2'}>{escape(section.title)}</{'h1' if first else 'h2'}>"
    for block in section.blocks:
        yield from _block(block, told, charts, number)
    yield "</section>"


def _block(block: Block, told: Told, charts: dict[str, Picture], number: int | None) -> Iterator[str]:
    if isinstance(block, Verdict):
        yield f'<p class="verdict {"bad" if block.bad else "good"}">{escape(block.text)}</p>'
    elif isinstance(block, Say):
        yield f"<p>{escape(block.text)}</p>"
    elif isinstance(block, Facts):
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in block.pairs)
        yield f"<dl>{pairs}</dl>"
    elif isinstance(block, Items):
        items = "".join(f"<li><strong>{escape(do)}</strong> {escape(because)}</li>" for do, because in block.pairs)
        yield f"<ol>{items}</ol>"
    elif isinstance(block, Grid):
        yield from _grid(block, linked=number is None)
    elif isinstance(block, Chart) and block.name in charts:
        yield from _chart(block.name, told, charts[block.name], number)


def _grid(block: Grid, linked: bool) -> Iterator[str]:
    """A table; linked, the first of its columns are names of runs, in the order in which they come."""
    kinds = ["" if i < block.words else ' class="number"' for i in range(len(block.headings))]
    heads = [f"<th{kind}>{escape(head)}</th>" for kind, head in zip(kinds, block.headings, strict=True)]
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(heads) + ('<th class="bars"></th>' if block.bars else "")
    yield "</tr></thead><tbody>"
    bars = list(_bars(block.bars)) if block.bars else [""] * len(block.rows)
    for i, (row, bar) in enumerate(zip(block.rows, bars, strict=True)):
        shown = [escape(cell) for cell in row]
        if linked:
            shown[0] = f'<a href="#section-{i}-0">{shown[0]}</a>'
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, shown, strict=True))
        yield f"<tr>{''.join(cells)}{bar}</tr>"
    yield "</tbody></table></div>"


def _bars(values: Sequence[float]) -> Iterator[str]:
    """Each number as a bar from a common zero, those below it to the left."""
    most, least = max([*values, 0.0]), min([*values, 0.0])
    whole = (most - least) or 1.0
    for value in values:
        left, width = 100 * (min(value, 0.0) - least) / whole, 100 * abs(value) / whole
        kind = "bar less" if value < 0 else "bar"
        bar = f'<div class="{kind}" style="margin-left:{left:.1f}%;width:{width:.1f}%"></div>' if width > 1e-4 else ""
        yield f'<td class="bars">{bar}</td>'


def _chart(name: str, told: Told, picture: Picture, number: int | None) -> Iterator[str]:
    kind = "chart wide" if picture.get("wide") else "chart"
    yield f'<figure class="{kind}" data-run="{number}" data-chart="{name}">'
    yield f"<figcaption><b>{escape(picture['title'])}</b> {escape(picture['help'])}</figcaption>"
    yield '<div class="paper"></div>'
    if name == "r":
        yield f"<noscript><pre>{escape(text_chart(told))}</pre></noscript>"
    yield "</figure>"
