from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from stepguard.probe.softmax import Entry, Softmax

WIDE = 16_384
"""Classes from which on the slopes of a linear head are made a slice at a time."""

# What may stand between a head and its softmax: functions that only rearrange samples, and such as act on every
# logit alike.
REARRANGING = {
    "__getitem__", "view", "reshape", "flatten", "unflatten", "contiguous", "transpose", "permute", "movedim", "t", "T",
    "mT", "squeeze", "unsqueeze", "narrow", "clone", "float", "double", "to", "type", "half", "bfloat16",
}  # fmt: skip
ELEMENTWISE = {"div", "mul", "add", "sub", "neg", "tanh", "__truediv__", "__mul__", "__add__", "__sub__"}
SIMPLE = REARRANGING | ELEMENTWISE
SIZED = {"view", "reshape", "unflatten", "flatten"}
_LINEAR, _PRODUCT = {"linear"}, {"matmul", "mm", "__matmul__"}


def has_wide_head(model: nn.Module) -> bool:
    """Whether a model may have a head that is worth slicing."""
    return any(max(p.shape, default=0) >= WIDE for p in model.parameters())


class NotATailError(Exception):
    """Something stands between a wide head and its softmax that does not act on each class alone."""


class Maker(NamedTuple):
    """How a tensor came of another one."""

    name: str
    function: Callable[..., Any]
    source: Tensor
    args: tuple[Any, ...]
    """Those after the source."""
    kwargs: dict[str, Any]
    others: tuple[Tensor, ...]
    """Further tensors that it was made from."""


class WideHead(NamedTuple):
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


def wide_head(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], dense: set[torch.Size]) -> WideHead | None:
    """The wide linear layer that this call of a function is, with its output; None if it is none."""
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
    if weight.shape[0] < max(WIDE, weight.shape[1] + 1) or weight.shape in dense:
        return None
    if not hidden.is_floating_point() or hidden.ndim < 2 or torch._C._functorch.is_functorch_wrapped_tensor(hidden):
        return None
    h, w = (forward_ad.unpack_dual(t).primal for t in (hidden, weight))
    b = None if bias is None else forward_ad.unpack_dual(bias).primal
    return WideHead(hidden, weight, bias, torch.nn.functional.linear(h, w, b))


def made_again(made: list[Maker], tensor: Tensor) -> Tensor:
    """What the same functions make of another tensor."""
    for maker in made:
        tensor = maker.function(tensor, *maker.args, **maker.kwargs)
    return tensor


def sliced(found: Entry, made: list[Maker], head: WideHead) -> Softmax | None:
    """The softmax whose logits are made a few columns at a time; None if something does not act on each alone."""
    width, class_dim, ndim = head.logits.shape[-1], head.logits.ndim - 1, found.input.ndim
    shapes = [*(m.source.shape for m in made), found.input.shape]
    for maker, before, after in zip(made, shapes, shapes[1:], strict=False):
        if list(before).count(width) != 1 or list(after).count(width) != 1 or not _spares(maker, class_dim, before):
            return None
        # A view that does not end with the classes may be any rearrangement of memory.
        if maker.name in SIZED and (class_dim != len(before) - 1 or after[-1] != width):
            return None
        class_dim = list(after).index(width)
    if found.kind not in ("logits", "log_probabilities") or found.class_dim not in (class_dim, class_dim - ndim):
        return None

    def columns(start: int, stop: int) -> Tensor:
        resized = [m._replace(args=_resized(m.args, width, stop - start)) if m.name in SIZED else m for m in made]
        return made_again(resized, head.columns(start, stop))

    return Softmax(found.input, class_dim, found.counted, columns, found.labels)


def _spares(maker: Maker, class_dim: int, shape: torch.Size) -> bool:
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
