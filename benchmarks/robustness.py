"""What a learning rate that is wrong does to a run: ours beside what people use today.

python -m benchmarks.robustness rates                  # learning rates over a factor of 1,000
python -m benchmarks.robustness spikes                 # one step, ten steps, held, ramp; x10 to x10,000
python -m benchmarks.robustness drive                  # tuned rates, tuned cosines, and steps of a chosen r
python -m benchmarks.robustness spikes --only "MLP" --ways plain limit calm --seeds 3

Networks of the paper's protocols, a CNN with BatchNorm that learns, and a byte-level GPT on the source of Python's own
library. Every result lands in a file of JSON lines beside the table, so that pictures need no new runs.
"""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median, stdev

from rich.console import Console
from rich.progress import Progress

from benchmarks.environment import begin
from benchmarks.robustness_runs import DRIVES, NETWORKS, WAYS, Network, Result, read, train
from benchmarks.scenarios import SPIKES, Rate


def steady(step: int) -> float:
    return 1.0


def rate_runs(name: str) -> Iterator[tuple[str, float, Rate]]:
    for exponent in range(-8, 1, 1):  # 1e-4 to 1 in half decades
        lr = 10 ** (exponent / 2)
        yield f"lr {lr:.3g}", lr, steady


def spike_runs(name: str) -> Iterator[tuple[str, float, Rate]]:
    network = NETWORKS[name]
    yield "no spike", network.lr, steady
    for kind in ("one step", "ten steps", "held", "ramp over 30"):
        for size in (10.0, 100.0, 1000.0, 10_000.0):
            # All sizes of the one that lasts, of the others the worst: r is linear in it.
            if kind != "held" and size < 10_000:
                continue
            yield f"{kind}, x{size:g}", network.lr, SPIKES[kind](size, network.spike_at)


def drive_runs(name: str, way: str) -> Iterator[tuple[str, float, Rate]]:
    rates = [NETWORKS[name].lr] if way in DRIVES else [10 ** (exponent / 4) for exponent in range(-14, -3)]
    return ((f"lr {lr:.2g}", lr, steady) for lr in rates)


def drive_rows(network: Network, results: list[Result]) -> None:
    """Mean and standard deviation over seeds at the end, of the best rate where there are several."""
    print("| way | rate | at the end |\n|---|---|---|")
    for way in dict.fromkeys(r.way for r in results):
        by_rate = {lr: [r.scores[-1] for r in results if (r.way, r.lr) == (way, lr)] for lr in {r.lr for r in results}}
        found = {lr: (mean(scores), stdev(scores)) for lr, scores in by_rate.items() if len(scores) > 1}
        best = (min if network.by_loss else max)(found, key=lambda lr: found[lr][0])
        rate = "any" if way in DRIVES else f"{best:.2g}, the best of {len(found)}"
        print(f"| {way} | {rate} | {found[best][0]:.3f} ± {found[best][1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["rates", "spikes", "drive"])
    parser.add_argument("--only", nargs="+", default=[""], help="networks whose names begin so")
    parser.add_argument("--what", nargs="+", default=[""], help="runs whose names begin so, such as held")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, metavar="WAY", help=", ".join(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="small models lose by more (default 1)")
    parser.add_argument(
        "--results", type=Path, default=Path("robustness.jsonl"), help="where every run is written down"
    )
    parser.add_argument("--read", type=Path, nargs="+", help="run nothing, but show what is written down there")
    options = parser.parse_args()
    begin(options.threads)
    results = read(options.read) if options.read else run(options)
    of = {"rates": rate_rows, "spikes": spike_rows, "drive": drive_rows}[options.part]
    for name in dict.fromkeys(r.network for r in results):
        print(f"\n**{name}**\n")
        of(NETWORKS[name], [r for r in results if r.network == name])


def run(options: argparse.Namespace) -> list[Result]:
    of = {"rates": rate_runs, "spikes": spike_runs}.get(options.part)
    ways = options.ways if of else ["plain", "cosine", *DRIVES]
    plans = [
        (name, way, what, lr, factor, seed)
        for name in NETWORKS
        if name.startswith(tuple(options.only))
        for way in ways
        for what, lr, factor in (of(name) if of else drive_runs(name, way))
        if what.startswith((*options.what, "no spike"))
        for seed in range(options.seeds)
    ]
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress, options.results.open("a") as file:
        for plan in progress.track(plans, description="runs"):
            results.append(train(*plan))
            print(json.dumps(results[-1]._asdict()), file=file, flush=True)
    return results


def rate_rows(network: Network, results: list[Result]) -> None:
    """The end of each run, over the whole sweep the worst and the mean, and what it takes of the time of plain runs."""
    rates = sorted({r.lr for r in results})
    print(
        "| way | " + " | ".join(f"{lr:.2g}" for lr in rates) + " | worst | mean | time |\n|" + "---|" * (len(rates) + 4)
    )
    worst = max if network.by_loss else min
    for way in dict.fromkeys(r.way for r in results):
        found = {lr: [r.scores[-1] for r in results if (r.way, r.lr) == (way, lr)] for lr in rates}
        ends = [median(scores) for scores in found.values() if scores]
        cells = [shown(network, median(scores)) if scores else "-" for scores in found.values()]
        cells += [shown(network, worst(ends)), shown(network, mean(ends))]
        print(f"| {way} | " + " | ".join(cells) + f" | {times(results, way):.1f} |", flush=True)


def spike_rows(network: Network, results: list[Result]) -> None:
    """The end of each run, in brackets the worst from the spike on, and what it takes of the time of plain runs."""
    runs = list(dict.fromkeys(r.what for r in results))
    print("| way | " + " | ".join(runs) + " | time |\n|" + "---|" * (len(runs) + 2))
    worst = max if network.by_loss else min
    at = network.spike_at // network.evaluated
    for way in dict.fromkeys(r.way for r in results):
        cells = []
        for what in runs:
            scores = [r.scores for r in results if (r.way, r.what) == (way, what)]
            if not scores:  # an earlier run that was cut short
                cells.append("-")
                continue
            end, after = median(s[-1] for s in scores), median(worst(s[at:]) for s in scores)
            cells.append(f"{shown(network, end)} ({shown(network, after)})")
        print(f"| {way} | " + " | ".join(cells) + f" | {times(results, way):.1f} |", flush=True)


def shown(network: Network, score: float) -> str:
    return f"{score:.2f}" if network.by_loss else f"{score:.1f}"


def times(results: list[Result], way: str) -> float:
    """Seconds of a run over those of a plain one."""
    of, plain = ([r.seconds for r in results if r.way == name] for name in (way, "plain"))
    return median(of) / median(plain) if plain else math.nan


if __name__ == "__main__":
    main()
