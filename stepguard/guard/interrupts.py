from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
"""Those that people handle in Python, by code that may raise."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C, and other signals that are handled in Python, wait until what is inside is done.

    Python runs a handler between any two instructions, also of a ``finally`` that puts things back, so that what it
    raises could leave a model anywhere. A signal that comes a second time does not wait: whoever asks twice means it.

    Example:
        >>> try:
        ...     with uninterrupted():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("all of it")
        ... except KeyboardInterrupt:
        ...     print("and then it stopped")
        all of it
        and then it stopped
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are handled in the main thread alone
        return
    handlers = {s: h for s in _SIGNALS if callable(h := signal.getsignal(s))}
    waiting: dict[int, FrameType | None] = {}
    over = False

    def wait(number: int, frame: FrameType | None) -> Any:
        if over or number in waiting:
            return handlers[signal.Signals(number)](number, frame)
        waiting[number] = frame

    try:
        for number in handlers:
            signal.signal(number, wait)
        yield
    finally:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        finally:
            over = True  # what could not be put back does from now on as the one that it stands for
        for came, frame in waiting.items():
            handlers[signal.Signals(came)](came, frame)
