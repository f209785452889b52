"""Draws what benchmarks.robustness wrote down.

python -m benchmarks.robustness_picture RESULTS.jsonl... --out docs/images/robustness.png
"""

import argparse
from collections import defaultdict
from pathlib import Path
from statistics import median

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.robustness_runs import NETWORKS, OURS, WAYS, Result, read
from stepguard.views.figure import COLOURS, SAFE

STYLES = {
    "plain": (COLOURS[1], 2.2),
    "clipped at 1": (COLOURS[2], 2.2),
    "calm": (COLOURS[3], 2.6),
    "calm, 0.2 at quantile 0.9": (SAFE, 2.6),
    "drive, 0.2 at quantile 0.9": (COLOURS[4], 1.8),
}
OTHERS = ("#b5b5b5", 1.2)
WORST = "held, x10000"


def draw(results: list[Result], path: Path) -> None:
    rates = [r for r in results if r.what.startswith("lr ")]
    held = [r for r in results if r.what in (WORST, "no spike")]
    over = [name for name in NETWORKS if any(r.network == name for r in rates)]
    after = [name for name in NETWORKS if any(r.network == name and r.what == WORST for r in held)]
    after = [name for name in after if not NETWORKS[name].by_loss]
    ways = [way for way in WAYS if {r.network for r in held if (r.way, r.what) == (way, WORST)} >= set(after)]
    figure = Figure(figsize=(13, 9.4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    top.suptitle("Learning rates over a factor of 10,000: what a run ends with", x=0.01, ha="left", fontweight="bold")
    bottom.suptitle(
        "Learning rate x10,000 from one step on: the lowest after it (o) and the end (bar)",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    for name, panel in zip(over, top.subplots(1, len(over), squeeze=False)[0], strict=True):
        sweep(panel, name, [r for r in rates if r.network == name])
    for name, panel in zip(after, bottom.subplots(1, len(after), squeeze=False, sharey=True)[0], strict=True):
        spike(panel, name, [r for r in held if r.network == name], ways)
    handles = [Line2D([], [], color=c, linewidth=w, label=way) for way, (c, w) in STYLES.items()]
    handles.append(Line2D([], [], color=OTHERS[0], linewidth=1.5, label="other ways of the table"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)


def sweep(panel, name: str, results: list[Result]) -> None:
    by_loss, found = NETWORKS[name].by_loss, defaultdict(lambda: defaultdict(list))
    for r in results:
        found[r.way][r.lr].append(r.scores[-1])
    for way in sorted(found, key=lambda way: way in STYLES):
        if way in OURS and way not in STYLES:
            continue
        colour, width = STYLES.get(way, OTHERS)
        points = sorted((lr, median(scores)) for lr, scores in found[way].items())
        panel.plot(*zip(*points, strict=True), color=colour, linewidth=width, zorder=width)
    panel.set_xscale("log")
    panel.set_title(name, fontsize=10)
    panel.set_xlabel("learning rate")
    panel.set_ylabel("loss on unseen text" if by_loss else "test accuracy, %")
    if by_loss:
        panel.set_ylim(2.0, 3.6)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def spike(panel, name: str, results: list[Result], ways: list[str]) -> None:
    at = NETWORKS[name].spike_at
    plain = [r for r in results if (r.way, r.what) == ("plain", "no spike")]
    if plain:
        panel.axvline(median(r.scores[-1] for r in plain), color="#444444", linewidth=1, linestyle=":")
    for place, way in enumerate(ways):
        runs = [r for r in results if (r.way, r.what) == (way, WORST)]
        colour = STYLES.get(way, (OTHERS[0],))[0] if way in STYLES or way not in OURS else COLOURS[5]
        panel.barh(place, median(r.scores[-1] for r in runs), color=colour, height=0.62, alpha=0.85)
        panel.plot(median(min(r.scores[at:]) for r in runs), place, "o", color="black", markersize=4.5)
    panel.set_yticks(range(len(ways)), ways, fontsize=8)
    panel.set_ylim(len(ways) - 0.5, -0.5)
    panel.set_xlim(0, 100)
    panel.set_title(name, fontsize=10)
    panel.set_xlabel("test accuracy, %")
    panel.grid(alpha=0.25, axis="x")
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("robustness.png"))
    options = parser.parse_args()
    draw(read(options.results), options.out)


if __name__ == "__main__":
    main()
