from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepguard.probe.full_precision import FullPrecision
from stepguard.probe.random_state import device_of

# What is set here is set for the whole process: of two threads, each would put back what the other had set.
_one_at_a_time = threading.RLock()


@contextmanager
def differentiable(model: nn.Module, autocast: set[str], attention: bool = True) -> Iterator[None]:
    """Only kernels that forward mode can differentiate, in full precision.

    Args:
        model: What is run.
        autocast: Takes up the kind of its device, if the model switches autocast on by itself.
        attention: Also those of attention, which write its scores down; backward can do without.
    """
    precision = FullPrecision(device_of(model).type, autocast)
    with eager(), precision, ExitStack() as stack:
        if attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) for m in model.modules()):  # it would only slow convolutions down
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # setting these flags warns of GPUs that are not there
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            if torch.cuda.is_available():
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def eager() -> Iterator[None]:
    """Nothing compiled, and no shortcut that there is only without gradients."""
    with _one_at_a_time, ExitStack() as stack:
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def nothing_saved() -> Iterator[None]:
    """Gradients as in training, so that the same kernels run, but no memory for a backward that will not come."""

    def wanted(_: object) -> torch.Tensor:
        raise RuntimeError("a backward wants what was not saved for it")

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, wanted):
        yield


def never_compiled(function: Any) -> Any:
    """Of a function that training calls: not to be compiled by itself, nor what it calls.

    Where it is traced as part of something larger, it still is: torch.compiler.disable would break that in two.
    """
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):  # from 2.7 on
        skip = frames._FrameAction.SKIP
        frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    return function


def anything_compiled() -> bool:
    """Whether this process has compiled a function for anything."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return bool(dynamo and dynamo.counters["frames"])
