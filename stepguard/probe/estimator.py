from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from stepguard.geometry import step_ratio
from stepguard.probe.difference import AIM, logits_and_differences, resolution
from stepguard.probe.slopes import Forward, logits_and_slopes

Kind = Literal["forward", "difference"]
# ReLU kinks and float32 rounding set the two a percent or two apart; what autograd was not told of, more.
_AGREEMENT = 0.05
_SMOOTHNESS = 0.2


class SlopeEstimator:
    """Takes the slopes of one model by the best means that is right for it.

    Forward mode, which is compared with a finite difference at the 1st, 2nd, 4th, 8th... measurement, since
    a model that starts from zeros has little to compare at first; the difference where forward mode cannot
    run the model or is silently wrong about it.

    Attributes:
        kind: Which of the two is in use.
        reason: Why it is not forward mode; empty if it is.
    """

    def __init__(self) -> None:
        self.kind: Kind = "forward"
        self.reason = ""
        self._measured = 0

    def state_dict(self) -> dict[str, Any]:
        """What has been found out, for a resumed run."""
        return {"kind": self.kind, "reason": self.reason, "measured": self._measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run has found out."""
        self.kind, self.reason, self._measured = state["kind"], state["reason"], state["measured"]

    def slopes(
        self,
        run: Forward,
        params: dict[str, Tensor],
        update: dict[str, Tensor],
        class_dim: int,
        recognise: Callable[[Tensor], None],
    ) -> Tensor:
        """Slopes of the logits along the update.

        Args:
            run: From parameters to logits, the same for the same parameters.
            params: The parameters at which to differentiate.
            update: Their proposed change.
            class_dim: Dimension of the logits that holds the classes.
            recognise: Raises if these are not the logits that training saw.

        Raises:
            ValueError: If the logits have no slope that could be measured.
        """
        if self.kind == "difference":
            logits, slopes = logits_and_differences(run, params, update, class_dim)
            recognise(logits)
            return slopes
        try:
            logits, slopes = logits_and_slopes(run, params, update)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            if self._measured:
                raise  # it can run this model, so the trouble is another
            recognise(run(params))
            slopes = _smooth_differences(run, params, update, class_dim)
            self.kind, self.reason = "difference", f"forward mode cannot run it ({_first_sentence(error)})"
            return slopes
        recognise(logits)
        self._measured += 1
        # In half precision a difference has no digits to check with.
        precise = all(p.dtype in (torch.float32, torch.float64) for p in params.values())
        if params and precise and self._measured.bit_count() == 1:
            # Nor where the logits of a model that has blown up leave it none.
            return slopes if resolution(logits) > AIM else self._check(slopes, run, params, update, class_dim)
        return slopes

    def _check(
        self, slopes: Tensor, run: Forward, params: dict[str, Tensor], update: dict[str, Tensor], class_dim: int
    ) -> Tensor:
        forward_r = r = _largest_r(slopes, class_dim)
        for aim in (AIM, AIM / 16):  # the larger one has the digits, the smaller one meets fewer ReLU kinks
            r = _largest_r(logits_and_differences(run, params, update, class_dim, aim)[1], class_dim)
            if abs(forward_r - r) <= _AGREEMENT * r:
                return slopes
        if not (math.isfinite(forward_r) and math.isfinite(r)):
            return slopes  # nothing to compare yet
        self._measured -= 1  # while it is refused it is not measured, and the next step must ask again
        slopes = _smooth_differences(run, params, update, class_dim)
        self.kind = "difference"
        self.reason = (
            f"forward mode gives r = {forward_r:.3g} where a difference of the logits gives {r:.3g}, so the forward "
            "computes something that autograd is not told of, such as detach, .item() or a custom derivative"
        )
        return slopes


def _smooth_differences(run: Forward, params: dict[str, Tensor], update: dict[str, Tensor], class_dim: int) -> Tensor:
    """Slopes by a difference that another size of perturbation confirms.

    Raises:
        ValueError: If it does not: the logits then have no slope to speak of.
    """
    slopes = logits_and_differences(run, params, update, class_dim)[1]
    fine = _largest_r(slopes, class_dim)
    coarse = _largest_r(logits_and_differences(run, params, update, class_dim, 16 * AIM)[1], class_dim)
    if abs(fine - coarse) > _SMOOTHNESS * coarse:
        raise ValueError(
            f"The logits move in jumps (r = {fine:.3g} or {coarse:.3g}, depending on the size of the perturbation), as "
            "where weights or activations are rounded, so they have no slope to measure; pass forward=, a function "
            "that returns the logits of a smooth version of the model"
        )
    return slopes


def _largest_r(slopes: Tensor, class_dim: int) -> float:
    return float(step_ratio(slopes.movedim(class_dim, -1)).max())


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0].split(". ")[0][:160]
