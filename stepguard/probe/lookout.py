from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from stepguard.probe.outline import function_name, version
from stepguard.probe.softmax import ENTRIES, GATES, LOG_SOFTMAXES, LOGARITHMS, Entry, Softmax, entry
from stepguard.probe.structure import leaves

WIDE = 16_384
"""Classes from which on the slopes of a linear head are made a slice at a time."""

# What may stand between a head and its softmax: functions that only rearrange samples, and such as act on every
# logit alike.
REARRANGING = {
    "__getitem__", "view", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "movedim", "t", "T",
    "mT", "squeeze", "unsqueeze", "narrow", "clone", "float", "double", "to", "type", "half", "bfloat16",
}  # fmt: skip
_ELEMENTWISE = {"div", "mul", "add", "sub", "neg", "tanh", "__truediv__", "__mul__", "__add__", "__sub__"}
_SIMPLE = REARRANGING | _ELEMENTWISE
# And between a softmax and a logarithm of it.
_OF_PROBABILITIES = _SIMPLE | {"gather", "clamp", "clamp_min", "rsub", "__rsub__", "sum"}
_REMEMBERED = GATES | LOG_SOFTMAXES | LOGARITHMS | _OF_PROBABILITIES
_SIZED = {"view", "reshape", "unflatten", "flatten"}
_LINEAR, _PRODUCT = {"linear"}, {"matmul", "mm", "__matmul__"}


def has_wide_head(model: nn.Module) -> bool:
    """Whether a model may have a head that is worth slicing."""
    return any(max(p.shape, default=0) >= WIDE for p in model.parameters())


class NotATailError(Exception):
    """Something stands between a wide head and its softmax that does not act on each class alone."""


class _Maker(NamedTuple):
    """How a tensor came of another one."""

    name: str
    function: Callable[..., Any]
    source: Tensor
    args: tuple[Any, ...]
    """Those after the source."""
    kwargs: dict[str, Any]
    others: tuple[Tensor, ...]
    """Further tensors that it was made from."""


class _WideHead(NamedTuple):
    """A linear layer whose output has its values but no tangent."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    logits: Tensor

    def columns(self, start: int, stop: int) -> Tensor:
        """Some of its output's columns as dual tensors, by the product rule."""
        h, dh = forward_ad.unpack_dual(self.hidden)
        w, dw = forward_ad.unpack_dual(self.weight[start:stop])
        slopes = torch.zeros_like(self.logits[..., start:stop])
        if dh is not None:
            slopes = torch.nn.functional.linear(dh, w)
        if dw is not None:
            slopes = slopes + torch.nn.functional.linear(h, dw)
        if self.bias is not None:
            db = forward_ad.unpack_dual(self.bias[start:stop]).tangent
            slopes = slopes if db is None else slopes + db
        dual: Tensor = forward_ad.make_dual(self.logits[..., start:stop].clone(), slopes)
        return dual


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
        self._heads: list[_WideHead] = []
        self._sliced: list[_WideHead] = []
        self._makers: dict[int, tuple[weakref.ref[Tensor], _Maker | _WideHead]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, function_name(function)
        if self.inside and name in ENTRIES:
            self._take(function, args, kwargs)
        head = self._wide_head(name, args, kwargs) if self._wide else None
        if head:
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
        if isinstance(origin, _WideHead):
            return [self._of_head(found, made, origin)]
        if found.kind == "log_probabilities" and isinstance(origin, _Maker) and origin.name in LOG_SOFTMAXES:
            (logits,) = self.softmaxes(origin.function, (origin.source, *origin.args), origin.kwargs)
            samples = logits.logits.movedim(logits.class_dim, -1).shape[:-1]
            if found.counted is None or found.counted.shape == samples:
                return [logits._replace(counted=found.counted)]
        self._refuse_wide(found.input)
        return [self._from_logits(found).softmax()]

    def _from_logits(self, found: Entry) -> Entry:
        """The same of the logits, where it is of probabilities: those have no digits left where a logit is large."""
        made, source = self._trace(found.input, REARRANGING)
        origin = self._maker(source)
        if not isinstance(origin, _Maker):
            return found
        if found.kind == "probabilities" and origin.name == "sigmoid":
            return found._replace(input=_made_again(made, origin.source), kind="binary")
        if found.kind == "log_probabilities" and origin.name == "log":
            before, source = self._trace(origin.source, REARRANGING)
            origin = self._maker(source)
            if isinstance(origin, _Maker) and origin.name in ("softmax", "special_softmax"):
                return found._replace(input=_made_again([*before, *made], origin.source))
        return found

    def _of_head(self, found: Entry, made: list[_Maker], head: _WideHead) -> Softmax:
        self._sliced.append(head)
        softmax = _sliced(found, made, head)
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
            if isinstance(origin, _Maker) and origin.name in LOG_SOFTMAXES:
                self.found = [s for s in self.found if s.logits is not origin.source]
        for softmax in self.softmaxes(function, args, kwargs):
            if not any(s.logits is softmax.logits and s.counted is softmax.counted for s in self.found):
                self.found.append(softmax)

    def _wide_head(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _WideHead | None:
        if kwargs or len(args) < 2 or not all(isinstance(a, Tensor) for a in args[:2]) or args[1].ndim != 2:
            return None
        bias = None
        if name in _LINEAR:
            hidden, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else None
        elif name in _PRODUCT:
            hidden, weight = args[0], args[1].t()
        else:
            return None
        if weight.shape[0] < max(WIDE, weight.shape[1] + 1) or weight.shape in self._dense:
            return None
        if not hidden.is_floating_point() or hidden.ndim < 2 or torch._C._functorch.is_functorch_wrapped_tensor(hidden):
            return None
        self._refuse_wide(hidden)
        h, w = (forward_ad.unpack_dual(t).primal for t in (hidden, weight))
        b = None if bias is None else forward_ad.unpack_dual(bias).primal
        return _WideHead(hidden, weight, bias, torch.nn.functional.linear(h, w, b))

    def _note_maker(
        self, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        sources, made = leaves(args, Tensor) + leaves(kwargs, Tensor), leaves(result, Tensor)
        if not sources or not made or any(m is s for m in made for s in sources):
            return
        first = bool(args) and args[0] is sources[0] and isinstance(result, Tensor)
        scalars = all(t.numel() == 1 for t in sources[1:]) and not (kwargs and name in _SIZED)
        simple = first and (
            (name in REARRANGING and not (kwargs and name in _SIZED)) or name in _ELEMENTWISE and scalars
        )
        if first and (simple or name in _REMEMBERED):
            others = tuple(t for t in sources[1:] if t.numel() > 1) if not simple else ()
            self._note(result, _Maker(name, function, sources[0], args[1:], kwargs, others))
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
                head = found if isinstance(found, _WideHead) else head
        if isinstance(head, _WideHead):
            self._dense.add(head.weight.shape)
            raise NotATailError  # should the user's code catch it, finish() will not find the head among the sliced

    def _note(self, tensor: Tensor, maker: _Maker | _WideHead) -> None:
        key = id(tensor)

        def forget(dead: weakref.ref[Tensor]) -> None:
            if key in self._makers and self._makers[key][0] is dead:
                del self._makers[key]

        self._makers[key] = weakref.ref(tensor, forget), maker

    def _maker(self, tensor: Tensor) -> _Maker | _WideHead | None:
        entry = self._makers.get(id(tensor))
        return entry[1] if entry and entry[0]() is tensor else None

    def _trace(self, tensor: Tensor, names: set[str] = _SIMPLE) -> tuple[list[_Maker], Tensor]:
        """The functions of one tensor alone that made a tensor, first one first, and what of."""
        made: list[_Maker] = []
        while isinstance(maker := self._maker(tensor), _Maker) and maker.name in names and not maker.others:
            made.append(maker)
            tensor = maker.source
        return made[::-1], tensor

    def _before(self, tensor: Tensor, names: set[str] | None = None) -> list[_Maker]:
        """Every function before a tensor, back to the first that is of another name, if names are given."""
        found: list[_Maker] = []
        todo = [tensor]
        while todo:
            maker = self._maker(todo.pop())
            if isinstance(maker, _Maker):
                found.append(maker)
                todo += [maker.source, *maker.others] if names is None or maker.name in names else []
        return found


def _made_again(made: list[_Maker], tensor: Tensor) -> Tensor:
    for maker in made:
        tensor = maker.function(tensor, *maker.args, **maker.kwargs)
    return tensor


def _sliced(found: Entry, made: list[_Maker], head: _WideHead) -> Softmax | None:
    """The softmax whose logits are made a few columns at a time; None if something does not act on each alone."""
    width, class_dim, ndim = head.logits.shape[-1], head.logits.ndim - 1, found.input.ndim
    shapes = [*(m.source.shape for m in made), found.input.shape]
    for maker, before, after in zip(made, shapes, shapes[1:], strict=False):
        if list(before).count(width) != 1 or list(after).count(width) != 1 or not _spares(maker, class_dim, before):
            return None
        # A view that does not end with the classes may be any rearrangement of memory.
        if maker.name in _SIZED and (class_dim != len(before) - 1 or after[-1] != width):
            return None
        class_dim = list(after).index(width)
    if found.kind not in ("logits", "log_probabilities") or found.class_dim not in (class_dim, class_dim - ndim):
        return None

    def columns(start: int, stop: int) -> Tensor:
        resized = [m._replace(args=_resized(m.args, width, stop - start)) if m.name in _SIZED else m for m in made]
        return _made_again(resized, head.columns(start, stop))

    return Softmax(found.input, class_dim, found.counted, columns)


def _spares(maker: _Maker, class_dim: int, shape: torch.Size) -> bool:
    """Whether an indexing takes all classes as they are."""
    if maker.name not in ("__getitem__", "narrow"):
        return True
    if maker.name == "narrow" or class_dim != len(shape) - 1:
        return False
    parts = maker.args[0] if isinstance(maker.args[0], tuple) else (maker.args[0],)
    if any(p is Ellipsis for p in parts):
        return parts[-1] is Ellipsis or (isinstance(parts[-1], slice) and parts[-1] == slice(None))
    while len(parts) == len(shape) and isinstance(parts[-1], slice) and parts[-1] == slice(None):
        parts = parts[:-1]
    masks = [p.ndim for p in parts if isinstance(p, Tensor) and p.dtype == torch.bool]
    return sum(masks) + sum(p is not None for p in parts) - len(masks) < len(shape)


def _resized(sizes: tuple[Any, ...], width: int, to: int) -> tuple[Any, ...]:
    return tuple(
        _resized(tuple(s), width, to) if isinstance(s, (tuple, list)) else to if s == width else s for s in sizes
    )
