from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

# A mode that outlives the block in which it was taken up must not be what the block's own mode finds on top of
# the stack when it ends, or that one would take off ours and leave itself there for good. So ours lies below all
# others; `torch.device` as a context, which looks for itself at the very bottom, excepted.


def is_up(mode: TorchFunctionMode) -> bool:
    """Whether it is on this thread's stack."""
    return mode in _get_current_function_mode_stack()


def take_up(mode: TorchFunctionMode) -> None:
    """Have a function mode on this thread's stack, once."""
    stack = _get_current_function_mode_stack()
    if mode not in stack:
        over = [m for m in stack if not isinstance(m, DeviceContext)]
        _rearrange(len(over), [mode, *over])


def take_off(mode: TorchFunctionMode) -> None:
    """Have it there no longer."""
    stack = _get_current_function_mode_stack()
    if mode in stack:
        over = stack[stack.index(mode) :]
        _rearrange(len(over), over[1:])


@contextmanager
def no_modes() -> Iterator[None]:
    """Have none on it, of functions or of operators, but for ``torch.device``."""
    over = [m for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)]
    _rearrange(len(over), [])
    try:
        with _disable_current_modes():
            yield
    finally:
        _rearrange(0, over)


def _rearrange(count: int, modes: list[TorchFunctionMode]) -> None:
    for _ in range(count):
        _pop_mode()
    for mode in modes:
        _push_mode(mode)
