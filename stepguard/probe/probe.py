from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stepguard.geometry import slope_spread
from stepguard.probe.capture import NOTHING_SEEN, CallCapture, SeenStep
from stepguard.probe.estimator import SlopeEstimator
from stepguard.probe.replay import Replay
from stepguard.probe.slopes import load_forward_mode


class Probe:
    """Measures how the logits of a model move along an update, on the batch that training used.

    Args:
        model: The module whose forward returns the logits.
        pick: Function from its output to the logits; None finds them.
        forward: Function from the model to logits, run instead of training's own calls; None replays those.
        before_first: Called before the first forward of each step, where calls are replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        pick: Callable[[Any], Tensor] | None = None,
        forward: Callable[[nn.Module], Tensor] | None = None,
        before_first: Callable[[], None] | None = None,
    ):
        self._model, self._forward = model, forward
        load_forward_mode()
        self._replay = Replay(model, pick)
        self._capture = None if forward else CallCapture(model, pick, before_first)

    @property
    def estimator(self) -> SlopeEstimator:
        """How the slopes are taken."""
        return self._replay.estimator

    def state_dict(self) -> dict[str, Any]:
        """What has been found out about the model, for a resumed run."""
        return {"estimator": self.estimator.state_dict(), "class_dim": self._capture and self._capture.class_dim}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run has found out."""
        self.estimator.load_state_dict(state["estimator"])
        if self._capture:
            self._capture.class_dim = state["class_dim"]

    def take(self) -> SeenStep:
        """What was seen since the last time; forgotten here, so that no batch outlives its step."""
        return self._capture.take() if self._capture else NOTHING_SEEN

    def remove(self) -> None:
        """Take every hook off the model."""
        if self._capture:
            self._capture.remove()

    def spreads(self, seen: SeenStep, moved: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """Spread of the slopes of every sample of the step, over all calls of the model, ``[N]``.

        Args:
            seen: From :meth:`take`.
            moved: Parameter, its value before the step, and its update. Those that are not the model's
                do not count.

        Raises:
            Exception: Whatever kept the logits from being found or run again, saying what to try.
        """
        name_of = {id(p): name for name, p in self._model.named_parameters()}
        moved = [m for m in moved if id(m[0]) in name_of]
        params = {name_of[id(p)]: old for p, old, _ in moved}
        update = {name_of[id(p)]: u for p, _, u in moved}
        if self._capture is None:
            assert self._forward is not None
            return slope_spread(self._replay.function(self._forward, params, update)).flatten()
        if not seen.calls:
            if seen.error:
                raise seen.error
            raise ValueError(_no_call(seen.forwards))
        for call in seen.calls:
            if call.error:
                raise call.error
        return torch.cat([slope_spread(self._replay.call(call, params, update)).flatten() for call in seen.calls])


def _no_call(forwards: int) -> str:
    if forwards:
        return (
            "The model was called, but no gradient reached the logits it returned: was the loss computed from them, "
            "and were labels passed?"
        )
    return (
        "The model was not called under grad since the last step. Attach to the module that the training step calls "
        "(module= in the Lightning callback), or pass forward=, a function that runs the model on a batch and returns "
        "its logits"
    )
