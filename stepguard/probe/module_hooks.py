from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.loss import _Loss
from torch.utils.hooks import RemovableHandle

from stepguard.probe.kernels import anything_compiled, never_compiled

Enter = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
Leave = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


class ModuleHooks:
    """Hooks around the calls of a model and of its parts.

    At first around every part, since any of them may be what a training step calls; once settled, no
    longer inside those that it did call. Parts without state of their own, such as a criterion or an
    activation, are left alone: what they do is seen as functions. So is the inside of what is compiled,
    where a hook would be compiled as well.

    Args:
        model: The root of it all.
        enter: Called with module, args and kwargs before a call.
        leave: Called with the output as well after it.
        only_root: Leave the parts alone.

    Attributes:
        called: The modules that a training step itself calls; to be filled as they are seen.
    """

    def __init__(self, model: nn.Module, enter: Enter, leave: Leave, only_root: bool = False):
        self._model, self._only_root = model, only_root
        self._enter, self._leave = enter, leave
        self.called: set[nn.Module] = set()
        self._settled = False
        self._handles: dict[nn.Module, list[RemovableHandle | _CompiledCall]] = {}
        self._register()

    def remove(self) -> None:
        """Take all of them off."""
        self._keep(set())

    def _keep(self, modules: set[nn.Module]) -> None:
        for module in [m for m in self._handles if m not in modules]:
            for handle in self._handles[module]:
                handle.remove()
            del self._handles[module]

    def settle(self) -> None:
        """Keep only those that were of use; all where they may be part of what is compiled, and cost nothing."""
        if not self._settled and not anything_compiled():
            self._settled = True
            self._register()

    def unsettle(self) -> None:
        """Have them everywhere again."""
        self._settled = False
        self._register()

    def _register(self) -> None:
        wanted = {self._model} if self._only_root else set(self._worth_watching(self._model))
        self._keep(wanted)
        # What is there stays: for other hooks, all that is compiled around them would be compiled anew.
        for module in wanted - self._handles.keys():
            if _is_compiled_in_place(module) or isinstance(module, torch.jit.ScriptModule):
                self._handles[module] = [_CompiledCall(module, self._enter, self._leave)]
                continue
            self._handles[module] = [
                # First of the pre-hooks: a replay runs the others again and must feed them what they were fed.
                module.register_forward_pre_hook(_Hook(module, self._enter), with_kwargs=True, prepend=True),
                module.register_forward_hook(_Hook(module, self._leave), with_kwargs=True, always_call=True),
            ]

    def _worth_watching(self, module: nn.Module, inside: bool = False) -> Iterator[nn.Module]:
        if not _has_state(module):
            return
        called = module in self.called
        if called or not (inside and self._settled):
            yield module
        if not _is_closed(module):
            for child in module.children():
                yield from self._worth_watching(child, inside or called)


def compiles(model: nn.Module) -> bool:
    """Whether some of it is compiled, or something in this process that it may call."""
    return anything_compiled() or any(_is_closed(module) for module in model.modules())


def _has_state(module: nn.Module) -> bool:
    if isinstance(module, _Loss):  # its class weights are a buffer
        return False
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _is_closed(module: nn.Module) -> bool:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    compiled = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
    return compiled or _is_compiled_in_place(module) or isinstance(module, torch.jit.ScriptModule)


def _is_compiled_in_place(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None


class _Hook:
    """A module hook that stays behind when the module is copied or pickled."""

    def __init__(self, module: nn.Module, call: Callable[..., None]):
        self._module, self._call = module, call

    @never_compiled
    def __call__(self, module: nn.Module, *args: Any) -> None:
        if not torch.compiler.is_compiling() and module is self._module:
            self._call(module, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_InertHook, ())


class _InertHook:
    def __call__(self, *args: Any) -> None:
        return None


class _CompiledCall:
    """Stands before the call of a module that takes no hooks: scripted, or compiled in place."""

    def __init__(self, module: nn.Module, enter: Enter, leave: Leave):
        before = vars(module).get("_compiled_call_impl")
        inner: Callable[..., Any] = before or module._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._here:  # something else stands before it by now, and still calls it
                return inner(*args, **kwargs)
            enter(module, args, kwargs)
            output = None
            try:
                output = inner(*args, **kwargs)
            finally:
                leave(module, args, kwargs, output)
            return output

        self._module, self._call, self._before = module, call, before
        self._here = True
        vars(module)["_compiled_call_impl"] = call

    def remove(self) -> None:
        self._here = False
        if vars(self._module).get("_compiled_call_impl") is self._call:
            vars(self._module)["_compiled_call_impl"] = self._before
