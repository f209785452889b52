from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

# A mode that outlives the block in which it was taken up must not be what the block's own mode finds on top of
# the stack when it ends, or that one would take off ours and leave itself there for good. So ours lies below all
# others; the context of torch.set_default_device excepted, which looks for itself at the very bottom.


def is_up(mode: TorchFunctionMode) -> bool:
    """Whether it is on this thread's stack."""
    return mode in _get_current_function_mode_stack()


def take_up(mode: TorchFunctionMode) -> None:
    """Have a function mode on this thread's stack, once."""
    stack = _get_current_function_mode_stack()
    if mode not in stack:
        default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
        bottom = stack[:1] if default is not None and stack[:1] == [default] else []
        _put([*bottom, mode, *stack[len(bottom) :]])


def take_off(mode: TorchFunctionMode) -> None:
    """Have it there no longer."""
    stack = _get_current_function_mode_stack()
    if mode in stack:
        _put([m for m in stack if m is not mode])


@contextmanager
def no_modes() -> Iterator[None]:
    """Have none on it, of functions or of operators, but for the device on which tensors are made."""
    if not (torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()):
        yield
        return
    stack = _get_current_function_mode_stack()
    _put([m for m in stack if isinstance(m, DeviceContext)])
    try:
        with _disable_current_modes():
            yield
    finally:
        _put(stack)


def _put(stack: list[TorchFunctionMode]) -> None:
    try:
        _replace(stack)
    except BaseException:  # Ctrl-C comes between any two lines, and must not cost a user's own mode
        _replace(stack)
        raise


def _replace(stack: list[TorchFunctionMode]) -> None:
    for _ in range(len(_get_current_function_mode_stack())):
        _pop_mode()
    for mode in stack:
        _push_mode(mode)
