"""Where a benchmark ran: the line above its tables."""

import platform
import sys

import torch


def begin(threads: int, device: str = "cpu") -> None:
    """Take so many threads, and say what it runs on."""
    torch.set_num_threads(threads)
    where = torch.cuda.get_device_name() if device == "cuda" else f"{threads} thread(s)"
    print(f"torch {torch.__version__}, {where}, {platform.machine()}, Python {sys.version.split()[0]}", flush=True)
