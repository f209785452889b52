from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


@contextmanager
def replaced(model: nn.Module, values: dict[Tensor, Tensor], upcast: bool = False) -> Iterator[None]:
    """By reference, wherever a module holds them: the only way for dual tensors and for another dtype.

    Not by torch.func.functional_call, which leaves its own tensors behind in a module that is there twice.
    """
    modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    found = [(m, dict(m._parameters), dict(m._buffers)) for m in modules]
    plain = [(m, k, v) for m in modules for k, v in vars(m).items() if type(v) in (list, tuple)]
    try:
        for module, parameters, buffers in found:
            for name, p in parameters.items():
                if p is not None and p in values:
                    module._parameters[name] = values[p]  # type: ignore[assignment]
            for name, b in buffers.items():
                if b is not None:
                    module._buffers[name] = b.float() if upcast and b.dtype in HALVES else b.clone()
        for owner, name, value in plain:  # such as the flat weights of a recurrent layer
            if any(isinstance(item, nn.Parameter) for item in value):
                vars(owner)[name] = type(value)(
                    values.get(item, item) if isinstance(item, nn.Parameter) else item for item in value
                )
        yield
    finally:
        for owner, name, value in plain:
            vars(owner)[name] = value
        for module, parameters, buffers in found:
            module._parameters.update(parameters)
            module._buffers.update(buffers)


@contextmanager
def data_replaced(model: nn.Module, moved: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """In the parameters themselves, which also those see who hold them in other ways than modules do."""
    buffers = [(m, dict(m._buffers)) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    pairs = moved + [(b, b.clone()) for b in model.buffers()]
    kept = [(tensor, tensor.data) for tensor, _ in pairs]
    try:
        for tensor, value in pairs:
            tensor.data = value
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for module, found in buffers:
            module._buffers.update(found)
