from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stepguard.probe.outline import function_name, version
from stepguard.probe.softmax import ENTRIES, GATES, LOG_SOFTMAXES, LOGARITHMS, Entry, Softmax, entry
from stepguard.probe.structure import leaves
from stepguard.probe.wide_head import (
    ELEMENTWISE,
    REARRANGING,
    SIMPLE,
    SIZED,
    Maker,
    NotATailError,
    WideHead,
    made_again,
    sliced,
    wide_head,
)

# What may stand between a softmax and a logarithm of it.
_OF_PROBABILITIES = SIMPLE | {"gather", "clamp", "clamp_min", "rsub", "__rsub__", "sum"}
_REMEMBERED = GATES | LOG_SOFTMAXES | LOGARITHMS | _OF_PROBABILITIES


class Lookout(TorchFunctionMode):
    """Watches a replay: finds the softmaxes inside modules and what their logits were made from.

    Args:
        wide: Whether to leave the slopes of wide heads for later.
        dense: Shapes of the weights for which that has been tried in vain; more are added.

    Attributes:
        found: The softmaxes that were taken while looking inside.
        inside: Whether to look for them.
    """

    def __init__(self, wide: bool, dense: set[torch.Size]):
        super().__init__()
        self.found: list[Softmax] = []
        self.inside = False
        self._wide, self._dense = wide, dense
        self._heads: list[WideHead] = []
        self._sliced: list[WideHead] = []
        self._makers: dict[int, tuple[weakref.ref[Tensor], Maker | WideHead]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function_name(function)
        if self.inside and name in ENTRIES:
            self._take(function, args, kwargs)
        head = wide_head(name, args, kwargs, self._dense) if self._wide else None
        if head:
            self._refuse_wide(head.hidden)
            self._heads.append(head)
            self._note(head.logits, head)
            return head.logits
        first = args[0] if args and isinstance(args[0], Tensor) else None
        before = version(first) if first is not None else 0
        result = function(*args, **kwargs)
        if first is not None and version(first) != before:
            self._changed(first)
        else:
            self._note_maker(name, function, args, kwargs, result)
        return result

    def finish(self) -> None:
        """To be called when all softmaxes are known.

        Raises:
            NotATailError: If something else was made of the output of a wide layer, and lacks its slopes.
        """
        lost = [head for head in self._heads if not any(head is sliced for sliced in self._sliced)]
        if lost:
            self._dense.update(head.weight.shape for head in lost)
            raise NotATailError

    def softmaxes(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Softmax]:
        """The softmaxes that a call of a function takes, traced back to their logits."""
        found = entry(function, args, kwargs)
        assert found is not None
        if found.kind == "logarithm":
            gates = [m for m in self._before(found.input, _OF_PROBABILITIES) if m.name in GATES]
            return [s for m in gates for s in self.softmaxes(m.function, (m.source, *m.args), m.kwargs)]
        made, source = self._trace(found.input)
        origin = self._maker(source)
        if isinstance(origin, WideHead):
            return [self._of_head(found, made, origin)]
        if found.kind == "log_probabilities" and isinstance(origin, Maker) and origin.name in LOG_SOFTMAXES:
            (logits,) = self.softmaxes(origin.function, (origin.source, *origin.args), origin.kwargs)
            samples = logits.logits.movedim(logits.class_dim, -1).shape[:-1]
            if found.counted is None or found.counted.shape == samples:
                return [logits._replace(counted=found.counted, labels=found.labels)]
        self._refuse_wide(found.input)
        return [self._from_logits(found).softmax()]

    def _from_logits(self, found: Entry) -> Entry:
        """The same of the logits, where it is of probabilities: those have no digits left where a logit is large."""
        made, source = self._trace(found.input, REARRANGING)
        origin = self._maker(source)
        if not isinstance(origin, Maker):
            return found
        if found.kind == "probabilities" and origin.name == "sigmoid":
            return found._replace(input=made_again(made, origin.source), kind="binary")
        if found.kind == "log_probabilities" and origin.name == "log":
            before, source = self._trace(origin.source, REARRANGING)
            origin = self._maker(source)
            if isinstance(origin, Maker) and origin.name in ("softmax", "special_softmax"):
                return found._replace(input=made_again([*before, *made], origin.source))
        return found

    def _of_head(self, found: Entry, made: list[Maker], head: WideHead) -> Softmax:
        self._sliced.append(head)
        softmax = sliced(found, made, head)
        if softmax is None:
            self._dense.add(head.weight.shape)
            raise NotATailError
        return softmax

    def _take(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, found = function_name(function), entry(function, args, kwargs)
        if name in GATES or found is None or not found.input.is_floating_point():
            return
        if found.kind == "log_probabilities":  # it knows better than its log_softmax which samples count
            origin = self._maker(self._trace(found.input)[1])
            if isinstance(origin, Maker) and origin.name in LOG_SOFTMAXES:
                self.found = [s for s in self.found if s.logits is not origin.source]
        for softmax in self.softmaxes(function, args, kwargs):
            if not any(s.logits is softmax.logits and s.counted is softmax.counted for s in self.found):
                self.found.append(softmax)

    def _note_maker(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        sources, made = leaves(args, Tensor) + leaves(kwargs, Tensor), leaves(result, Tensor)
        if not sources or not made or any(m is s for m in made for s in sources):
            return
        first = bool(args) and args[0] is sources[0] and isinstance(result, Tensor)
        scalars = all(t.numel() == 1 for t in sources[1:]) and not (kwargs and name in SIZED)
        simple = first and ((name in REARRANGING and not (kwargs and name in SIZED)) or name in ELEMENTWISE and scalars)
        if first and (simple or name in _REMEMBERED):
            others = tuple(t for t in sources[1:] if t.numel() > 1) if not simple else ()
            self._note(result, Maker(name, function, sources[0], args[1:], kwargs, others))
        if not simple and name not in ENTRIES and any(t.is_floating_point() for t in made):
            for source in sources:
                self._refuse_wide(source)

    def _changed(self, tensor: Tensor) -> None:
        """In place, so that it no longer is what its maker made."""
        self._refuse_wide(tensor)
        self._makers.pop(id(tensor), None)

    def _refuse_wide(self, tensor: Tensor) -> None:
        """Raise if a wide head is anywhere before a tensor, which then lacks its slopes."""
        head = self._maker(tensor)
        for maker in self._before(tensor):
            for source in (maker.source, *maker.others):
                found = self._maker(source)
                head = found if isinstance(found, WideHead) else head
        if isinstance(head, WideHead):
            self._dense.add(head.weight.shape)
            raise NotATailError  # should the user's code catch it, finish() will not find the head among the sliced

    def _note(self, tensor: Tensor, maker: Maker | WideHead) -> None:
        key = id(tensor)

        def forget(dead: weakref.ref[Tensor]) -> None:
            if key in self._makers and self._makers[key][0] is dead:
                del self._makers[key]

        self._makers[key] = weakref.ref(tensor, forget), maker

    def _maker(self, tensor: Tensor) -> Maker | WideHead | None:
        entry = self._makers.get(id(tensor))
        return entry[1] if entry and entry[0]() is tensor else None

    def _trace(self, tensor: Tensor, names: set[str] = SIMPLE) -> tuple[list[Maker], Tensor]:
        """The functions of one tensor alone that made a tensor, first one first, and what of."""
        made: list[Maker] = []
        while isinstance(maker := self._maker(tensor), Maker) and maker.name in names and not maker.others:
            made.append(maker)
            tensor = maker.source
        return made[::-1], tensor

    def _before(self, tensor: Tensor, names: set[str] | None = None) -> list[Maker]:
        """Every function before a tensor, back to the first that is of another name, if names are given."""
        found: list[Maker] = []
        todo = [tensor]
        while todo:
            maker = self._maker(todo.pop())
            if isinstance(maker, Maker):
                found.append(maker)
                todo += [maker.source, *maker.others] if names is None or maker.name in names else []
        return found
