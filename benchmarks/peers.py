"""Other ways to keep a run from being ruined, written from their papers, for any optimizer.

Each is made for one run and has a say before the optimizer's step, on gradients, or around it, on the update.
"""

import math
from collections.abc import Callable, Sequence
from statistics import quantiles

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Loss = Callable[[], Tensor]


class Peer:
    """Nothing at all: plain training."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, steps: int):
        self.parameters, self.lr, self.steps = list(parameters), lr, steps

    def rate(self, step: int, lr: float) -> float:
        """What it makes of the learning rate that was asked for."""
        return lr

    def step(self, optimizer: Optimizer, value: float, loss: Loss) -> None:
        """Make the step; gradients are there, ``value`` is the loss and ``loss`` finds it again."""
        self.gradients()
        optimizer.step()

    def gradients(self) -> None:
        """Change them."""


class Clip(Peer):
    """By the global norm, at 1."""

    def gradients(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters, 1.0)


class AutoClip(Peer):
    """Seetharaman et al. 2020: at the tenth percentile of all norms so far."""

    def __init__(self, *args):
        super().__init__(*args)
        self.norms: list[float] = []

    def gradients(self) -> None:
        norm = float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if math.isfinite(norm):
            self.norms.append(norm)
        if len(self.norms) > 1:
            nn.utils.clip_grad_norm_(self.parameters, quantiles(self.norms, n=10, method="inclusive")[0])


class ZClip(Peer):
    """Kumar et al. 2025: back to mean + z_threshold^2 / z standard deviations, by running averages of the norm."""

    alpha, threshold, warm_up = 0.97, 2.5, 25

    def __init__(self, *args):
        super().__init__(*args)
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def gradients(self) -> None:
        norm = float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not math.isfinite(norm):
            return
        if len(self.first) < self.warm_up:
            self.first.append(norm)
            if len(self.first) == self.warm_up:
                self.mean = sum(self.first) / self.warm_up
                self.variance = sum((n - self.mean) ** 2 for n in self.first) / self.warm_up
            return
        deviation = math.sqrt(self.variance) + 1e-6
        z = (norm - self.mean) / deviation
        if z > self.threshold:
            norm = self.mean + self.threshold**2 / z * deviation
            nn.utils.clip_grad_norm_(self.parameters, norm)
        self.mean = self.alpha * self.mean + (1 - self.alpha) * norm
        self.variance = self.alpha * self.variance + (1 - self.alpha) * (norm - self.mean) ** 2


class AGC(Peer):
    """Brock et al. 2021: each output unit's gradient at 0.01 of the norm of its weights."""

    def gradients(self) -> None:
        for p in self.parameters:
            if p.grad is None:
                continue
            dims = tuple(range(1, p.ndim)) if p.ndim > 1 else ()
            weight = (p.detach().norm(2, dims, keepdim=True) if dims else p.detach().abs()).clamp(min=1e-3)
            gradient = p.grad.norm(2, dims, keepdim=True) if dims else p.grad.abs()
            p.grad.mul_((0.01 * weight / gradient.clamp(min=1e-6)).clamp(max=1.0))


class WarmUp(Peer):
    """Linear, over the first tenth of the run."""

    def rate(self, step: int, lr: float) -> float:
        return lr * min((step + 1) / (0.1 * self.steps), 1.0)


class Cosine(Peer):
    """Down to zero over the run."""

    def rate(self, step: int, lr: float) -> float:
        return lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class OnUpdate(Peer):
    """Shortens the update that the optimizer made."""

    def step(self, optimizer: Optimizer, value: float, loss: Loss) -> None:
        old = [p.detach().clone() for p in self.parameters]
        gradients = [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        optimizer.step()
        with torch.no_grad():
            update = [p - o for p, o in zip(self.parameters, old, strict=True)]
            slope = float(sum((g * u).sum() for g, u in zip(gradients, update, strict=True)))

            def put(scale: float) -> None:
                for p, o, u in zip(self.parameters, old, update, strict=True):
                    p.copy_(o + scale * u if scale else o)

            self.choose(put, value, slope, loss)

    def choose(self, put: Callable[[float], None], value: float, slope: float, loss: Loss) -> None:
        raise NotImplementedError


class LineSearch(OnUpdate):
    """Armijo's on the batch, halving up to twenty times along the optimizer's update (Vaswani et al. 2019)."""

    def choose(self, put: Callable[[float], None], value: float, slope: float, loss: Loss) -> None:
        scale = 1.0
        for _ in range(20):
            now = float(loss())
            if math.isfinite(now) and now <= value + 0.1 * scale * min(slope, 0.0):
                return
            scale /= 2
            put(scale)
        put(0.0)


class Polyak(OnUpdate):
    """Loizou et al. 2021, along the optimizer's update: not beyond where its slope would bring the loss to zero."""

    def choose(self, put: Callable[[float], None], value: float, slope: float, loss: Loss) -> None:
        scale = value / -slope if slope < 0 else 0.0
        if not scale >= 1:
            put(scale if math.isfinite(scale) else 0.0)


PEERS: dict[str, type[Peer]] = {
    "plain": Peer,
    "clipped at 1": Clip,
    "AutoClip": AutoClip,
    "ZClip": ZClip,
    "AGC": AGC,
    "warm-up": WarmUp,
    "cosine": Cosine,
    "line search": LineSearch,
    "Polyak": Polyak,
}
