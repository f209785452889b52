from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """The running averages of a model's normalisation layers, as they were before a step's forward.

    They are updated by the forward pass, before anything can be known of the step: a batch whose step
    is withheld must not stay in them.
    """

    def __init__(self, model: nn.Module):
        self._layers = [m for m in model.modules() if isinstance(m, _NormBase)]
        self._kept: list[tuple[nn.Module, str, Tensor]] = []
        self.keep()

    def keep(self) -> None:
        """Remember them as they are."""
        self._kept = [(m, name, b.clone()) for m in self._layers for name, b in m.named_buffers(recurse=False)]

    def put_back(self) -> None:
        """Let them be as they were remembered."""
        for layer, name, kept in self._kept:
            layer.get_buffer(name).copy_(kept)
