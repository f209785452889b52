"""Ways to break into a measurement at its n-th call."""

import signal
import sys
import traceback

import torch

_MEASURING = ("/stepguard/guard/guard.py", "/stepguard/guard/collapse.py")
# What puts tensors back allocates nothing, and cannot run out of memory.
_ALLOCATING = {
    "linear", "batch_norm", "relu", "dropout", "clone", "_make_dual", "empty_like", "empty_permuted", "ne", "amax",
    "amin", "where", "float", "cat", "stack", "max", "isfinite", "abs", "zeros_like", "_foreach_norm", "mul", "div",
}  # fmt: skip


def _inside(frame):
    if "/stepguard/" in frame.f_code.co_filename:
        return True
    while frame and not frame.f_code.co_filename.endswith(_MEASURING):
        frame = frame.f_back
    return frame is not None


class SignalAt:
    """Ctrl-C at the n-th call of a Python function that happens in stepguard, or in what it calls.

    Attributes:
        calls: How many there were, up to the signal.
        where: The innermost functions at the signal; None if it did not come to that.
    """

    def __init__(self, n):
        self.n, self.calls, self.where = n, 0, None

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        if self.where is None and _inside(frame):
            self.calls += 1
            if self.calls == self.n:
                self.where = [f"{f.name}, line {f.lineno}" for f in traceback.extract_stack(frame)[-4:]]
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)


class OutOfMemoryAt:
    """No memory at the n-th tensor that stepguard, or what it runs again, asks for.

    Attributes:
        calls: How many there were, up to that one.
        where: The function that asked; None if it did not come to that.
    """

    def __init__(self, n):
        self.n, self.calls, self.where = n, 0, None

    def __enter__(self):
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)

    def _profile(self, frame, event, function):
        if event != "c_call" or self.where or not _allocates(function) or not _inside(frame):
            return
        self.calls += 1
        if self.calls == self.n:
            self.where = f"{function.__name__} in {frame.f_code.co_name}, line {frame.f_lineno}"
            sys.setprofile(None)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _allocates(function):
    owner = getattr(function, "__self__", None)
    of_torch = owner is None or isinstance(owner, torch.Tensor) or owner is torch._C._nn
    return of_torch and function.__name__ in _ALLOCATING
