"""What it costs to measure r behind a very wide head: its slopes a slice at a time beside all at once.

python -m benchmarks.wide_head                    # a few minutes on one core
python -m benchmarks.wide_head --classes 50257 --tokens 256

A small causal language model with a tied head. Plain steps, steps measured a slice at a time and steps measured
densely alternate in one process; medians of the optimizer step, which holds the measurement, and of the whole step.
The peak is of the bytes that measuring adds, counted at every operation, theta_old and u included.
"""

import argparse
import contextlib
import statistics
import sys
import time
import weakref
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stepguard
from benchmarks.environment import begin
from stepguard.probe import wide_head

WAYS = {"sliced": wide_head.WIDE, "dense": sys.maxsize}


class TinyLM(nn.Module):
    """Embedding, two layers of mixing, and the embedding again as the head."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.body = nn.Sequential(*(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()),) * 2)
        self.head = nn.Linear(width, classes, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(tokens)))


class Peak(TorchDispatchMode):
    """Bytes of the tensors that were made while it was on and were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in before | self._known:
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()

        def free() -> None:
            self.now -= size
            self._known.discard(place)

        weakref.finalize(storage, free)
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)


def measure(classes: int, width: int, tokens: int, steps: int) -> list[str]:
    """The table's row."""
    batch = torch.randint(0, classes, (4, tokens // 4), generator=torch.Generator().manual_seed(0))
    model = TinyLM(classes, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seconds: dict[str, list[float]] = {"plain": [], **{way: [] for way in WAYS}}
    whole: list[float] = []
    r: dict[str, float] = {}
    peak: dict[str, int] = {}

    def step(way: str, peaks: Peak | None = None) -> None:
        started = time.perf_counter()
        optimizer.zero_grad()
        logits = model(batch)
        F.cross_entropy(logits[:, :-1].reshape(-1, classes), batch[:, 1:].reshape(-1)).backward()
        del logits
        before = time.perf_counter()
        if peaks:
            with peaks, mock.patch("stepguard.guard.guard.no_modes", contextlib.nullcontext):  # or it would not be seen
                optimizer.step()
        else:
            optimizer.step()
        seconds[way].append(time.perf_counter() - before)
        if way == "plain":
            whole.append(time.perf_counter() - started)

    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for index in range(steps + 4):
        step("plain")
        for way, wide in WAYS.items():
            wide_head.WIDE = wide
            with stepguard.attach(model, optimizer, action="observe", cadence="every", strict=True) as guard:
                guard._probe.estimator._measured = 10  # not one of the readings that are checked by a difference
                with torch.no_grad():
                    for n, p in model.named_parameters():
                        p.copy_(start[n])
                peaks = Peak() if index == steps + 3 else None
                step(way, peaks)
                assert guard.last
                r[way] = guard.last.r
                if peaks:
                    peak[way] = peaks.peak
    assert abs(r["sliced"] - r["dense"]) <= 1e-4 * r["dense"], r
    plain, sliced, dense = (statistics.median(seconds[way][3:-1]) for way in ("plain", *WAYS))
    step_time = statistics.median(whole[3:])
    return [
        f"{classes:,}",
        f"{tokens}",
        f"{step_time:.2f}",
        f"{sliced - plain:.2f}",
        f"{dense - plain:.2f}",
        f"{(sliced - plain) / (dense - plain):.2f}",
        f"{peak['sliced'] / 2**20:.0f}",
        f"{peak['dense'] / 2**20:.0f}",
        f"{4 * tokens * classes / 2**20:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[50_257, 128_256])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    begin(options.threads)
    print()
    print(
        "| classes | tokens | plain step, s | sliced, s | dense, s | ratio | sliced, MiB | dense, MiB | logits, MiB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for classes in options.classes:
        print("| " + " | ".join(measure(classes, options.width, options.tokens, options.steps)) + " |", flush=True)


if __name__ == "__main__":
    main()
