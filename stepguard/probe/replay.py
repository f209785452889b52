from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepguard.probe.capture import ModelCall, fingerprint
from stepguard.probe.estimator import SlopeEstimator
from stepguard.probe.logits import find_logits, largest_finite
from stepguard.probe.random_state import RandomState, device_of, random_state, replaying
from stepguard.probe.slopes import Forward
from stepguard.probe.traces import no_traces

_OTHER_LOGITS = (
    "running the model again on the same batch gave other logits than training saw, so its forward depends on more "
    "than inputs, weights, buffers and random state (or the batch was changed in place); pass forward=, a function "
    "that runs the model on a batch and returns its logits"
)


class Replay:
    """Runs a model's forward again at given parameters, leaving no trace of it.

    Args:
        model: The module whose forward returns the logits.
        pick: From the model's output to the logits; None finds them.

    Attributes:
        estimator: How the slopes are taken.
    """

    def __init__(self, model: nn.Module, pick: Callable[[Any], Tensor] | None = None):
        self._model, self._pick = model, pick or find_logits
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
        self.estimator = SlopeEstimator()

    def call(self, call: ModelCall, params: dict[str, Tensor], update: dict[str, Tensor]) -> Tensor:
        """Slopes of the logits of one logged call, classes last.

        Raises:
            RuntimeError: If the replay does not give the logits that training saw.
        """

        def forward(model: nn.Module) -> Tensor:
            return self._pick(model(*call.args, **call.kwargs))

        def recognise(logits: Tensor) -> None:
            again = fingerprint(logits)
            # Training may have run at half precision where the replay does not.
            half = call.autocast or call.fingerprint.dtype in (torch.float16, torch.bfloat16)
            atol = (0.1 if half else 1e-3) * largest_finite(call.fingerprint) + 1e-6
            if again.shape != call.fingerprint.shape or not torch.allclose(
                again.float(), call.fingerprint.float(), rtol=0, atol=atol, equal_nan=True
            ):
                raise RuntimeError(_OTHER_LOGITS)

        run = self._runner(forward, call.random, call.training)
        slopes = self.estimator.slopes(run, params, update, call.class_dim, recognise)
        return slopes.movedim(call.class_dim, -1)

    def function(
        self, forward: Callable[[nn.Module], Tensor], params: dict[str, Tensor], update: dict[str, Tensor]
    ) -> Tensor:
        """Slopes of the logits of whatever ``forward`` does with the model, classes last."""
        run = self._runner(forward, random_state(device_of(self._model)))
        return self.estimator.slopes(run, params, update, -1, recognise=lambda logits: None)

    def _runner(
        self, forward: Callable[[nn.Module], Tensor], random: RandomState, training: list[bool] | None = None
    ) -> Forward:
        """``forward`` as a function of the parameters, the same at every call."""
        target, device = _Forward(self._model, forward), device_of(self._model)

        def run(inputs: dict[str, Tensor]) -> Tensor:
            state = {f"model.{name}": b.clone() for name, b in self._model.named_buffers()}
            state |= {f"model.{name}": value for name, value in inputs.items()}
            with (
                replaying(random, device),
                no_traces(self._model, training),
                _differentiable_kernels(device, self._recurrent),
            ):
                logits = torch.func.functional_call(target, state, ())
            assert isinstance(logits, Tensor)
            return logits

        return run


class _Forward(nn.Module):
    """Lets functional_call swap the model's parameters around any function of the model."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model = model
        self._function = function

    def forward(self) -> Tensor:
        return self._function(self.model)


@contextmanager
def _differentiable_kernels(device: torch.device, recurrent: bool) -> Iterator[None]:
    """Full precision, and only kernels that forward mode can differentiate."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for kind in {"cpu", device.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if recurrent:  # elsewhere it would only slow the convolutions down
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # setting this flag warns of GPUs that are not there
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
