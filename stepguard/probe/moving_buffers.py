from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from stepguard.probe.outline import KeptBuffer, version


class MovingBuffers:
    """Buffers that a module's forward changes, such as a power iteration's vectors.

    Its output depends on what they were before, so running it again begins with them. Found out at the
    first call, after which only those are kept. The running averages of normalisation layers are left
    out: while they move, the output does not depend on them.
    """

    def __init__(self) -> None:
        self._moving: dict[nn.Module, list[tuple[nn.Module, str]]] = {}

    def keep(self, module: nn.Module) -> list[KeptBuffer]:
        """Keep them as they are before a forward."""
        known = self._moving.get(module)
        if known is None:
            owners = [m for m in module.modules() if not isinstance(m, _NormBase)]
            known = [(m, name) for m in owners for name, _ in m.named_buffers(recurse=False)]
        found = [(m, name, m._buffers[name]) for m, name in known]
        return [KeptBuffer(m, name, b, version(b), b.clone()) for m, name, b in found if b is not None]

    def moved(self, module: nn.Module, kept: list[KeptBuffer]) -> list[KeptBuffer]:
        """Those that the forward has changed."""
        if module not in self._moving:
            kept = [k for k in kept if k.owner._buffers.get(k.name) is not k.found or version(k.found) != k.version]
            self._moving[module] = [(k.owner, k.name) for k in kept]
        return kept
