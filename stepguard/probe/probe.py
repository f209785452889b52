from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from stepguard.probe.batches import batches, modules_called, starts_early
from stepguard.probe.elsewhere import elsewhere
from stepguard.probe.estimator import SlopeEstimator
from stepguard.probe.explain import Explanation, explained
from stepguard.probe.reasons import MOVED_BY_ANOTHER, NO_CALL, NO_SOFTMAX
from stepguard.probe.recognition import OtherLogitsError
from stepguard.probe.rerun import Learned, Manner, Rerun, Target
from stepguard.probe.sharding import units_of
from stepguard.probe.softmax import Look
from stepguard.probe.values import Elsewhere, Move
from stepguard.probe.watch import NOTHING_SEEN, SeenStep, Watch

T = TypeVar("T")


class NoSoftmaxError(ValueError):
    """A step in which no softmax was seen."""


class Screen(NamedTuple):
    """When a measurement that is right to a few percent will do."""

    expected: float
    """About what r is."""
    enough: float
    """Largest r for which it will."""


class Probe:
    """Measures how the logits of a model move along an update, on the batch that training used.

    Args:
        model: The module that is trained.
        parameters: Gives those that the optimizer moves.
        pick: Function from its output to the logits; None finds them.
        forward: Function from the model to logits, run instead of what training did; None replays that.
        before_first: Called before the first forward of each step, where training is watched.
        worth: Whether the next step is worth watching, as :class:`Watch` asks.
        how: How to run again what training did.

    Attributes:
        estimator: How the slopes are taken.
        found: What the last measurement was of, in words.
        method: How it was made: by the estimator's kind, or by a ``secant``.
        looked: What its samples are like; to be let go of.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Callable[[], Iterable[Tensor]],
        pick: Callable[[Any], Tensor] | None = None,
        forward: Callable[[nn.Module], Tensor] | None = None,
        before_first: Callable[[], None] | None = None,
        how: Manner | None = None,
        worth: Callable[[], bool] = lambda: True,
    ):
        self._model, self._forward, self._how, self._learned = model, forward, how or Manner(), Learned()
        self.estimator, self.found, self.method = SlopeEstimator(), "", "forward"
        self.looked = Look()
        self._failures = 0
        self._sizes: list[list[int]] = []
        self._looked_in: list[str] = []
        self._watch = None if forward else Watch(model, parameters, pick, before_first, worth)

    def state_dict(self) -> dict[str, Any]:
        """What has been found out about the model, for a resumed run."""
        numbers = sorted(self._watch.numbers.before) if self._watch else []
        return {"estimator": self.estimator.state_dict(), "numbers": numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what an earlier run has found out."""
        self.estimator.load_state_dict(state["estimator"])
        if self._watch:
            self._watch.numbers.before = set(state["numbers"])

    def take(self) -> SeenStep:
        """What was seen since the last time; forgotten here, so that no batch outlives its step."""
        return self._watch.take() if self._watch else NOTHING_SEEN

    def resume(self) -> None:
        """The step is made; the next one may begin."""
        if self._watch:
            self._watch.resume()

    def remove(self) -> None:
        """Take every hook off the model."""
        if self._watch:
            self._watch.remove()

    @property
    def keeps_logits(self) -> bool:
        """Whether logits of a step are kept for a screening of it."""
        return self._watch is not None and self._watch.keeps_logits

    @keeps_logits.setter
    def keeps_logits(self, keeps: bool) -> None:
        if self._watch:
            self._watch.keeps_logits = keeps

    def spreads(self, seen: SeenStep, moves: list[Move], screen: Screen | None = None) -> Tensor:
        """Spread of the slopes of every sample of the step, over all softmaxes of its loss, ``[N]``.

        Args:
            seen: From :meth:`take`.
            moves: Parameter, its value before the step, and its update.
            screen: When a secant will do; None is never.

        Raises:
            NoSoftmaxError: If the step had none, saying what to try.
            Exception: Whatever kept the logits from being found or run again.
        """
        if self._watch is None:
            assert self._forward is not None
            with elsewhere(self._model, moves) as place:
                spreads = self._of([[self._forward]], place, None)
        else:
            spreads = self._of_batches(self._watch, seen, moves, screen)
        if spreads is None:
            raise NoSoftmaxError(self._not_found(seen))
        return spreads

    def explain(self, seen: SeenStep, moves: list[Move], index: int) -> Explanation | None:
        """Where the spread of one of the samples comes from that were measured last.

        Args:
            seen: The same as of :meth:`spreads`.
            moves: Likewise.
            index: Of the sample, among the spreads.

        Returns:
            None where parameters are sharded: nobody has a whole gradient.

        Raises:
            Exception: Whatever kept it from being found.
        """
        if units_of(self._model):
            return None
        found: list[list[Target]] = [[self._forward]] if self._forward else batches(seen.reached)
        place = _place(self._sizes, index)
        with self._watch.paused() if self._watch else nullcontext():
            return explained(self._model, found, place, moves, self.estimator, self._how, self._learned)

    def _of_batches(self, watch: Watch, seen: SeenStep, moves: list[Move], screen: Screen | None) -> Tensor | None:
        try:
            # A rank without a batch is there as well, for the parameters that others need of it.
            with watch.paused(), elsewhere(self._model, moves) as place:
                if seen.error:
                    raise seen.error  # whatever else was seen may not be all of it
                spreads = self._of(batches(seen.reached), place, screen)
        except Exception as error:
            self._look_again(watch)
            if isinstance(error, OtherLogitsError) and _others_moved(watch, seen):
                raise ValueError(MOVED_BY_ANOTHER) from None
            raise
        if spreads is None:
            self._look_again(watch)
        else:
            self._failures = 0
            watch.settle(starts_early(seen.reached))
        return spreads

    def _not_found(self, seen: SeenStep) -> str:
        if self._watch and not seen.forwards:
            return NO_CALL
        inside = f", nor inside {', '.join(self._looked_in)}" if self._looked_in else ""
        return NO_SOFTMAX.format(what=inside)

    def _look_again(self, watch: Watch) -> None:
        self._failures += 1
        if self._failures.bit_count() == 1:  # what stays as it is need not be looked at anew at every step
            watch.look_again()

    def _of(self, found: list[list[Target]], place: Elsewhere, screen: Screen | None) -> Tensor | None:
        """None where nothing has a softmax."""
        reruns = [Rerun(self._model, targets, place, self._how, self._learned) for targets in found]
        self._looked_in = []
        if screen and reruns:
            quick = self._each(reruns, lambda rerun: self.estimator.quick_spreads(rerun, screen.expected))
            flat = torch.cat([s.flatten() for spreads in quick for s in spreads or [torch.full((1,), math.inf)]])
            if flat.numel() and float(flat.max()) / math.pi <= screen.enough:
                self.method = "secant"
                return flat
        by_rerun = self._each(reruns, self.estimator.spreads)
        self._sizes = [[s.numel() for s in spreads] for spreads in by_rerun]
        spreads = list(chain.from_iterable(by_rerun))
        self.method = self.estimator.kind
        if not spreads:
            self._looked_in = sorted({name for rerun in reruns for name in rerun.modules})
            return None
        self.found = ", ".join(sorted({rerun.describe() for rerun in reruns}))
        return torch.cat([s.flatten() for s in spreads])

    def _each(self, reruns: list[Rerun], measure: Callable[[Rerun], T]) -> list[T]:
        """Measure one after the other, and keep what its samples are like."""
        found: list[T] = []
        looks: list[Look] = []
        for rerun in reruns:
            found.append(measure(rerun))
            looks += self.estimator.looks
        self.looked = Look(_all_of([look.loss_N for look in looks]), _all_of([look.collapsed_N for look in looks]))
        return found


def _all_of(parts: list[Tensor | None]) -> Tensor | None:
    """Together, if all of them are known."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known and len(known) == len(parts) else None


def _place(sizes: list[list[int]], index: int) -> tuple[int, int, int]:
    """Of a number in a row of lists of lists: in which it is, and its place there."""
    for batch, of in enumerate(sizes):
        for softmax, size in enumerate(of):
            if index < size:
                return batch, softmax, index
            index -= size
    raise IndexError("there are fewer samples")


def _others_moved(watch: Watch, seen: SeenStep) -> bool:
    """Whether parameters that are another optimizer's are others by now than when the forward was made."""
    now = watch.changes_by_others()
    return any(call.others != now for call in modules_called(seen.reached))
