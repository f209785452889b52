from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stepguard.records import Run

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Track:
    r"""The readings of a run in columns, and r in its factors; nan is what is not known.

    What a step did is a product, so what changed is a sum of logarithms:
    :math:`r = \mathrm{lr} \cdot \mathrm{gain} \cdot \lVert g \rVert \cdot \mathrm{sensitivity}`, with the gain
    :math:`\lVert u \rVert / (\mathrm{lr} \lVert g \rVert)`, what the optimizer made of the gradient beyond its rate,
    and the sensitivity :math:`1/\rho_a`, how far a step of length 1 in this direction would go.
    """

    step: Numbers
    r: Numbers
    target: Numbers
    scale: Numbers
    lr: Numbers
    lr_before: Numbers
    """Of the step just before, measured or not."""
    tau_before: Numbers
    tau: Numbers
    gradient: Numbers
    weights: Numbers
    r_median: Numbers
    loss: Numbers
    loss_max: Numbers
    samples: Numbers
    inputs: Numbers
    input_norm: Numbers
    input_norm_max: Numbers
    predicted: Flags
    """Where r is from what was known before, and says nothing of the batch."""

    @property
    def breach(self) -> Flags:
        """Readings beyond their target; what is not a number is, where there is a target."""
        return np.asarray(~(self.r <= self.target) & ~np.isnan(self.target))

    @property
    def gain(self) -> Numbers:
        """Length of the update per learning rate and gradient: 1 for plain SGD, up to 1 / (1 - momentum) with it."""
        return _over(self.tau, self.lr * self.gradient)

    @property
    def pull(self) -> Numbers:
        """Length of the update per learning rate: gradient and gain together, which adaptive optimizers trade."""
        return _over(self.tau, self.lr)

    @property
    def sensitivity(self) -> Numbers:
        """The r of a step of length 1."""
        return _over(self.r, self.tau)

    def __len__(self) -> int:
        return len(self.step)


def track_of(run: Run) -> Track:
    """The readings of a run.

    Example:
        >>> from pathlib import Path
        >>> from stepguard.records import Reading
        >>> run = Run(Path("stepguard.jsonl"))
        >>> run.readings.append(Reading(3, 2.0, 4.0, 2.0, 6.28, 0.5, 0.1, 0.05, target=1.0, gradient_norm=8.0))
        >>> track = track_of(run)
        >>> track.gain, track.sensitivity, track.breach
        (array([5.]), array([0.5]), array([ True]))
    """
    columns = run.readings.columns

    def numbers(name: str) -> Numbers:
        return np.array(columns[name], dtype=np.float64)  # of None this makes nan

    return Track(
        step=numbers("step"),
        r=numbers("r"),
        target=numbers("target"),
        scale=numbers("scale"),
        lr=_rates(run),
        lr_before=numbers("lr_before"),
        tau_before=numbers("tau_before"),
        tau=numbers("tau"),
        gradient=numbers("gradient_norm"),
        weights=numbers("weight_norm"),
        r_median=numbers("r_median"),
        loss=numbers("loss"),
        loss_max=numbers("loss_max"),
        samples=numbers("samples"),
        inputs=numbers("inputs"),
        input_norm=numbers("input_norm"),
        input_norm_max=numbers("input_norm_max"),
        predicted=np.array([e == "prediction" for e in columns["estimator"]], dtype=np.bool_),
    )


def _rates(run: Run) -> Numbers:
    """The learning rate; of several groups that one which changes most."""
    largest, each = np.array(run.readings.columns["lr"], dtype=np.float64), run.readings.columns["lrs"]
    widths = {len(rates) for rates in each if rates}
    if len(widths) != 1:
        return largest
    (width,) = widths
    rates = np.array([rates or [None] * width for rates in each], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.where(rates > 0, np.log(rates), np.nan)
        spans = [float(np.ptp(known)) if len(known := log[np.isfinite(log)]) else 0.0 for log in logs.T]
        usual = np.where(largest > 0, np.log(largest), np.nan)
    span = float(np.ptp(known)) if len(known := usual[np.isfinite(usual)]) else 0.0
    most = int(np.argmax(spans))
    return np.where(np.isnan(rates[:, most]), largest, rates[:, most]) if spans[most] > span + 0.1 else largest


def _over(above: Numbers, below: Numbers) -> Numbers:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 0, above / below, np.nan))
