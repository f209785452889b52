from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stepguard.probe.traces import Attribute, attributes


class Buffer(NamedTuple):
    """A buffer as it was."""

    owner: nn.Module
    name: str
    found: Tensor
    version: int
    value: Tensor

    @property
    def changed(self) -> bool:
        """Whether it is another by now."""
        return self.owner._buffers.get(self.name) is not self.found or self.found._version != self.version

    def put_back(self) -> None:
        """Let the module have its value again, in another tensor."""
        now = self.owner._buffers[self.name]
        self.owner._buffers[self.name] = self.value.to(self.value.dtype if now is None else now.dtype, copy=True)


class ForwardMemory:
    """What modules remember from one forward to the next: a power iteration's vectors, a recurrent state.

    Their output depends on what it was before, so running them again begins with that. What there is of
    it is found out at the first call of a module, and only that is kept from then on. The running
    averages of normalisation layers are none of it: while they move, the output does not depend on them.
    """

    def __init__(self) -> None:
        self._known: dict[nn.Module, tuple[list[tuple[nn.Module, str]], list[tuple[nn.Module, str]]]] = {}

    def keep(self, module: nn.Module) -> list[Buffer | Attribute]:
        """Keep it as it is before a forward."""
        if module in self._known:
            buffers, plain = self._known[module]
            owners = list(dict.fromkeys(m for m, _ in plain))
            return [*_buffers(buffers), *(a for a in attributes(owners) if (a.owner, a.name) in plain)]
        modules = [m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule)]
        named = [(m, name) for m in modules if not isinstance(m, _NormBase) for name in m._buffers]
        return [*_buffers(named), *attributes(modules)]

    def moved(self, module: nn.Module, kept: list[Buffer | Attribute]) -> list[Buffer | Attribute]:
        """What of it the forward has changed."""
        if module not in self._known:
            kept = [k for k in kept if k.changed]
            buffers = [(k.owner, k.name) for k in kept if isinstance(k, Buffer)]
            self._known[module] = buffers, [(k.owner, k.name) for k in kept if isinstance(k, Attribute)]
        return kept


def _buffers(named: list[tuple[nn.Module, str]]) -> list[Buffer | Attribute]:
    found = [(m, name, m._buffers[name]) for m, name in named]
    return [Buffer(m, name, b, b._version, b.clone()) for m, name, b in found if b is not None and not b.is_inference()]
