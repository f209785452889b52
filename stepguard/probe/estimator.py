from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stepguard.probe.difference import (
    AIM,
    largest_r,
    resolution,
    size_of_difference,
    spreads_by_difference,
    spreads_by_secant,
    with_change,
)
from stepguard.probe.outline import UntraceableError
from stepguard.probe.recognition import OtherLogitsError
from stepguard.probe.rerun import Rerun, Result, taken_in
from stepguard.probe.sample import Sample, sample_of
from stepguard.probe.slopes import load_forward_mode
from stepguard.probe.softmax import Look, Softmax

T = TypeVar("T")
Kind = Literal["forward", "difference"]
# ReLU kinks and float32 rounding set the two a percent or two apart; what autograd was not told of, more.
_AGREEMENT = 0.05
_SMOOTHNESS = 0.2
_one_at_a_time = threading.Lock()


class SlopeEstimator:
    """Takes the slopes of one model by the best means that is right for it.

    Forward mode, which is compared with a finite difference at the 1st, 2nd, 4th, 8th... measurement, since
    a model that starts from zeros has little to compare at first; the difference where forward mode cannot
    run the model or is silently wrong about it.

    Attributes:
        kind: Which of the two is in use.
        reason: Why it is not forward mode; empty if it is.
        quick: Whether a secant agreed with forward mode when they were last compared.
        looks: What the samples of each softmax are like that was measured last.
    """

    def __init__(self) -> None:
        load_forward_mode()
        self.kind: Kind = "forward"
        self.reason = ""
        self.quick = False
        self.looks: list[Look] = []
        self._measured = 0

    def state_dict(self) -> dict[str, Any]:
        """What has been found out, for a resumed run."""
        return {"kind": self.kind, "reason": self.reason, "measured": self._measured, "quick": self.quick}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run has found out."""
        self.kind, self.reason, self._measured = state["kind"], state["reason"], state["measured"]
        self.quick = state.get("quick", False)

    def quick_spreads(self, rerun: Rerun, expected: float) -> list[Tensor] | None:
        """The same by a secant, in one forward pass; None if that cannot be relied on, or a check is due."""
        if not self.quick or self._check_is_due:
            return None

        def beside(scale: float) -> list[tuple[Softmax, Softmax]] | None:
            pairs = rerun.beside(scale)
            self.looks = [before.look(before.logits.dtype) for before, _ in pairs or ()]
            return pairs

        with torch.no_grad():
            spreads = spreads_by_secant(beside, expected)
        self._measured += spreads is not None
        return spreads

    def spreads(self, rerun: Rerun) -> list[Tensor]:
        """Spread of the slopes along the update, for every softmax that a rerun comes to.

        Raises:
            ValueError: If the logits have no slope that could be measured.
        """
        result, spreads, trouble = None, None, None
        check = self._check_is_due
        if self.kind == "forward":
            try:
                result, spreads = _spreads_along(rerun)
                self._look_at(result)
                rerun.recognise(result, closely=check)
            except (torch.OutOfMemoryError, UntraceableError, OtherLogitsError):
                raise
            except Exception as error:
                if forward_ad._current_level >= 0:
                    raise  # the user's own forward mode is on, and there is room for one
                if self._measured:
                    raise  # it can run this model, so the trouble is another
                spreads, trouble = None, f"forward mode cannot run it ({_first_sentence(error)})"
        if result is None or spreads is None:
            spreads = self._smooth_differences(rerun) if check else self._differences(rerun, rerun.at(0))
        elif rerun.precise and check and resolution(result.softmaxes) <= AIM:
            # Where the logits of a model that has blown up leave a difference no digits, there is nothing to check.
            spreads, trouble = self._checked(spreads, rerun)
        if trouble:
            self.kind, self.reason = "difference", trouble
        if check:
            self.quick = not trouble and self.kind == "forward" and self._secant_agrees(rerun, largest_r(spreads))
        self._measured += 1
        return spreads

    def sample(self, rerun: Rerun, softmax: int, counted: int) -> Sample:
        """A sample of a rerun, looked at closely.

        Args:
            rerun: What it is of.
            softmax: Which of its softmaxes.
            counted: Which of the samples of that which count.
        """
        if self.kind == "forward":
            return _along(
                rerun, lambda softmaxes: sample_of(softmaxes, softmax, counted, lambda s: map(_with_slopes, s.pieces()))
            )[1]
        with torch.no_grad():
            size = size_of_difference(lambda scale: rerun.at(scale).softmaxes, rerun.at(0).softmaxes)
            before, after = (rerun.at(scale).softmaxes for scale in (-size, size))
            slopes = (
                (z, a / (2 * size)) for z, a in map(with_change, before[softmax].pieces(), after[softmax].pieces())
            )
            return sample_of(before, softmax, counted, lambda _: slopes)

    def _look_at(self, result: Result) -> None:
        with torch.no_grad():
            self.looks = [s.look(taken_in(of)) for s, of in zip(result.softmaxes, result.sources, strict=True)]

    @property
    def _check_is_due(self) -> bool:
        return (self._measured + 1).bit_count() == 1

    def _secant_agrees(self, rerun: Rerun, r: float) -> bool:
        with torch.no_grad():
            spreads = spreads_by_secant(rerun.beside, r)
        return spreads is not None and abs(largest_r(spreads) - r) <= _AGREEMENT * r

    def _differences(self, rerun: Rerun, result: Result, aim: float = AIM) -> list[Tensor]:
        self._look_at(result)
        rerun.recognise(result)
        with torch.no_grad():
            return spreads_by_difference(lambda scale: rerun.at(scale).softmaxes, result.softmaxes, aim)

    def _checked(self, spreads: list[Tensor], rerun: Rerun) -> tuple[list[Tensor], str]:
        """The spreads that are right, and what is wrong with those of forward mode, if anything."""
        forward_r, r = largest_r(spreads), math.nan
        result = rerun.at(0)
        for aim in (AIM, AIM / 16):  # the larger one has the digits, the smaller one meets fewer ReLU kinks
            r = largest_r(self._differences(rerun, result, aim))
            if abs(forward_r - r) <= _AGREEMENT * r:
                return spreads, ""
        if not (math.isfinite(forward_r) and math.isfinite(r)):
            return spreads, ""  # nothing to compare yet
        return self._smooth_differences(rerun), (
            f"forward mode gives r = {forward_r:.3g} where a difference of the logits gives {r:.3g}, so the forward "
            "computes something that autograd is not told of, such as detach, .item() or a custom derivative"
        )

    def _smooth_differences(self, rerun: Rerun) -> list[Tensor]:
        """By a difference that other sizes of perturbation confirm.

        Raises:
            ValueError: If they do not: the logits then have no slope to speak of.
        """
        result = rerun.at(0)
        spreads = [self._differences(rerun, result, aim) for aim in (AIM, AIM / 16, 16 * AIM)]
        r = [largest_r(s) for s in spreads]
        if max(r) - min(r) > _SMOOTHNESS * max(r):
            raise ValueError(
                f"The logits move in jumps (r = {min(r):.3g} to {max(r):.3g}, by the size of the perturbation) "
                "as where weights or activations are rounded, so they have no slope to measure; pass forward=, a "
                "function that returns the logits of a smooth version of the model"
            )
        return spreads[0]


def _along(rerun: Rerun, read: Callable[[Sequence[Softmax]], T]) -> tuple[Result, T]:
    """The logits with their slopes, and what can be read off them while they have any."""
    # Dual tensors under no_grad, not torch.func.jvp: about half its cost, and it also runs train-mode
    # BatchNorm, whose in-place statistics func.jvp refuses. There is one level of them for all threads.
    with _one_at_a_time, torch.no_grad(), forward_ad.dual_level():
        result = rerun.along()
        try:
            with rerun.in_full_precision():
                return result, read(result.softmaxes)
        except Exception:
            if not rerun.slices:
                raise
            rerun.slices = False  # whatever stands behind the head, it does not go with slices
            result = rerun.along()
            with rerun.in_full_precision():
                return result, read(result.softmaxes)


def _spreads_along(rerun: Rerun) -> tuple[Result, list[Tensor]]:
    return _along(rerun, _spreads)


def _spreads(softmaxes: Sequence[Softmax]) -> list[Tensor]:
    return [s.spread(map(_with_slopes, s.pieces())) for s in softmaxes]


def _with_slopes(piece: Tensor) -> tuple[Tensor, Tensor]:
    z, a = forward_ad.unpack_dual(piece)
    # No tangent means that nothing on the path to the logits moved.
    return z, torch.zeros_like(z) if a is None else a


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0][:160]
