from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import nn

# What a forward or a user's hook may remember outside of its module: a counter in a closure, a list of features among
# the globals of its file, an attribute of the object whose method it is. One place is a dict and a key in it, or the
# cell of a closure.

_LIBRARY = ("torch.", "stepguard.")


def places(model: nn.Module) -> Iterator[tuple[Any, str]]:
    """Where the forwards and the forward hooks of a model may remember something."""
    met: set[int] = set()
    for function in _functions(model):
        for owner, name in _places(function):
            if (key := hash((id(owner), name))) not in met:
                met.add(key)
                yield owner, name


def _functions(model: nn.Module) -> Iterable[Callable[..., Any]]:
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    for kind in {type(m) for m in modules}:
        yield kind.forward
        for name in getattr(getattr(kind.forward, "__code__", None), "co_names", ()):
            if isinstance(method := getattr(kind, name, None), FunctionType):
                yield method
    for m in modules:
        if "forward" in vars(m):
            yield vars(m)["forward"]
        yield from m._forward_pre_hooks.values()
        yield from m._forward_hooks.values()


def _places(function: Any, helpers: bool = True) -> Iterator[tuple[Any, str]]:
    if isinstance(function, functools.partial):
        yield from _places(function.func)
        return
    owner = getattr(function, "__self__", None)
    if not hasattr(function, "__code__") and owner is None:
        owner, function = function, vars(type(function)).get("__call__")
    if hasattr(owner, "__dict__") and not isinstance(owner, (nn.Module, type)):
        yield from ((vars(owner), name) for name in list(vars(owner)))
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__") or (getattr(function, "__module__", None) or "").startswith(_LIBRARY):
        return
    yield from ((cell, "") for cell in function.__closure__ or ())
    named = [name for name in function.__code__.co_names if name in function.__globals__]
    yield from ((function.__globals__, name) for name in named)
    for name in named if helpers else ():
        helper = function.__globals__[name]
        if isinstance(helper, FunctionType):
            yield from _places(helper, helpers=False)
