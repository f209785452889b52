"""How long a cold dashboard takes to a million readings: until it serves them, and until the page has drawn them.

python -m benchmarks.dashboard_load                    # a minute, and 0.6 GB in a temporary folder
python -m benchmarks.dashboard_load --readings 100000

Seconds of the clock from the start of the server's process, and processor seconds of the server, which others on the
machine do not change much. The page is timed if chromium, chromedriver and selenium are there.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.environment import begin
from stepguard.records import Reading

EVERY = 50_000
"""Steps from one breach to the next."""
SHOWN = """const [run] = window.stepguard?.runs.shown() ?? [];
return run?.about.readings === arguments[0] && run.key?.startsWith(run.about.version)"""
"""Whether what the charts have is of all that there is."""
OPTIONS = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "no-first-run")


def write(folder: Path, count: int) -> None:
    """A run of so many readings, with all fields and all digits."""
    draw = random.Random(0)
    with open(folder / "stepguard.jsonl", "w") as file:
        file.write('{"kind": "start", "time": 1.0, "schema": 1, "pid": 1, "writes": "guard"}\n')
        for step in range(count):
            r = draw.uniform(2, 3) if step % EVERY == EVERY // 2 else draw.uniform(0.2, 0.5)
            tau, scale, loss = draw.random(), min(1.0, 1 / r), draw.random()
            reading = Reading(
                step, r, tau, tau / r, math.pi * r, scale, 0.003, 0.003 * scale, 1.0, "forward", draw.random() / 20,
                "told", gradient_norm=draw.random(), weight_norm=10 + draw.random(), r_median=r / 3, samples=64,
                loss=loss, loss_max=5 * loss, inputs=64, input_norm=3 + draw.random(), input_norm_max=6.5,
                lr_before=0.003, tau_before=tau,
            )  # fmt: skip
            line = {"kind": "reading", "time": 1.7e9 + step / 100, **reading.as_dict(), "by": "guard"}
            file.write(json.dumps(line) + "\n")


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, int]]:
    """``stepguard dashboard``: its address, and its process."""
    command = [sys.executable, "-m", "stepguard.cli", "dashboard", str(folder), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield next(line.split()[-1] for line in process.stdout if line.startswith("StepGuard at")), process.pid
        finally:
            process.kill()


def served(url: str, count: int) -> int:
    """Waits until all readings are served; bytes of the charts."""

    def ask(what: str) -> bytes:
        with urllib.request.urlopen(f"{url.split('#')[0]}data/plugin/stepguard/{what}") as answer:
            found: bytes = answer.read()
            return found

    until(lambda: [run["readings"] for run in json.loads(ask("runs"))["runs"]] == [count])
    return len(ask("series?run=.&buckets=2000"))


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not there():
        if time.monotonic() > end:
            raise TimeoutError("not there after two minutes")
        time.sleep(0.05)


def used(pid: int) -> tuple[float, int]:
    """Processor seconds and MB at most, of a process."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return sum(map(int, ticks)) / 100, int(peak.split()[1]) // 1024


@contextmanager
def browser() -> Iterator[Any]:
    """A headless chromium that has begun; None where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        chromium = None
    if not (chromium and driver):
        yield None
        return
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in OPTIONS:
        options.add_argument(f"--{option}")
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield page
    finally:
        page.quit()


def drawn(page: Any, url: str, count: int) -> None:
    """Waits until the page has drawn all readings."""
    page.get("about:blank")
    page.get(url)
    until(lambda: bool(page.find_elements("css selector", "iframe")))
    page.switch_to.frame(page.find_element("css selector", "iframe"))
    until(lambda: page.execute_script(SHOWN, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    begin(1)
    with tempfile.TemporaryDirectory() as name, browser() as page:
        folder = Path(name)
        write(folder, args.readings)
        size = (folder / "stepguard.jsonl").stat().st_size
        print(f"{args.readings:,} readings, {size / 1e6:.0f} MB; median of {args.repeats}\n")
        print("| until | seconds | processor seconds of the server | MB |\n|---|---|---|---|")
        for what in ("it serves them", *(["the page has drawn them"] if page else [])):
            found = []
            for _ in range(args.repeats):
                began = time.monotonic()
                with server(folder) as (url, pid):
                    served(url, args.readings) if what == "it serves them" else drawn(page, url, args.readings)
                    found.append((time.monotonic() - began, *used(pid)))
                    if page:
                        page.switch_to.default_content()
                        page.get("about:blank")
            seconds, processor, peak = (median(column) for column in zip(*found, strict=True))
            print(f"| {what} | {seconds:.1f} | {processor:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
