"""What perpGrad costs: ours, the published loop, pytorch_optimizer's OrthoGrad and the optimizer's own step.

python -m benchmarks.perp_grad_cost        # about a minute; needs the extra `bench`

All of them take turns in one process, on gradients that are put back before each; medians. One `add_` of weights to
gradients is the yardstick of memory: it reads both and writes one, where perpGrad reads both twice and writes one.
"""

import argparse
import time
from statistics import median

import torch
from pytorch_optimizer import OrthoGrad
from torch import Tensor, nn

import stepguard
from benchmarks.environment import begin

LAYER = [(256,), (256,), (768, 256), (768,), (256, 256), (256,), (256,), (256,), (1024, 256), (1024,), (256, 1024)]
CASES = {
    "GPT, 16 layers of width 256: 200 tensors, 21M": [*16 * [*LAYER, (256,)], *4 * [(8192, 256)], *4 * [(256,)]],
    "200 tensors, 64 x 64 or 64: 0.4M": [*100 * [(64, 64)], *100 * [(64,)]],
    "200 tensors of 128 x 128: 3M": 200 * [(128, 128)],
    "200 tensors of 256 x 256: 13M": 200 * [(256, 256)],
    "2 tensors of 4096 x 4096: 34M": 2 * [(4096, 4096)],
}
NAMES = ("ours", "published", "OrthoGrad", "AdamW", "add_")


@torch.no_grad()
def published(parameters: list[Tensor]) -> None:
    """The published algorithm, a tensor at a time."""
    for p in parameters:
        if p.grad is None:
            continue
        w, g = p.view(-1), p.grad.view(-1)
        orthogonal = g.to(torch.float32, copy=True) - torch.dot(w, g) / (torch.dot(w, w) + 1e-30) * w
        orthogonal = orthogonal * (g.norm(2) / (orthogonal.norm(2) + 1e-30))
        p.grad.copy_(orthogonal.view_as(p.grad))


@torch.no_grad()
def add(parameters: list[Tensor]) -> None:
    for p in parameters:
        assert p.grad is not None
        p.grad.add_(p, alpha=1e-9)


def measure(shapes: list[tuple[int, ...]], device: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    parameters: list[Tensor] = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    gradients = [torch.randn_like(p) for p in parameters]
    for p in parameters:
        p.grad = torch.empty_like(p)
    optimizer = torch.optim.AdamW(parameters, lr=1e-9)
    orthograd = OrthoGrad(torch.optim.SGD(parameters, lr=0.0))
    calls = (
        lambda: stepguard.perp_grad_(parameters),
        lambda: published(parameters),
        lambda: orthograd.apply_orthogonal_gradients(parameters),
        optimizer.step,
        lambda: add(parameters),
    )
    taken: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds + 3):
        for name, call in zip(NAMES, calls, strict=True):
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad.copy_(g)  # type: ignore[union-attr]
            wait(device)
            started = time.perf_counter()
            call()
            wait(device)
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: median(times[3:]) for name, times in taken.items()}


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    begin(options.threads, options.device)
    print()
    print("| parameters | " + ", ms | ".join(NAMES) + ", ms | ours / published | ours / AdamW |\n|" + "---|" * 8)
    for name, shapes in CASES.items():
        ms = measure(shapes, options.device, options.rounds)
        cells = [f"{ms[n]:.2f}" for n in NAMES]
        ratios = [f"{ms['ours'] / ms[n]:.2f}" for n in ("published", "AdamW")]
        print("| " + " | ".join([name, *cells, *ratios]) + " |", flush=True)


if __name__ == "__main__":
    main()
