"""Functions run by several gloo processes on this machine."""

import os
import socket
import time
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing


def run_on_ranks(work, folder, ranks=2, seconds=120):
    """``work(rank, folder)`` in as many processes; what each returned, by rank. A hang is a failure."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    running = multiprocessing.spawn(_begin, (work, port, folder, ranks, seconds), nprocs=ranks, join=False)
    end = time.monotonic() + seconds
    while not running.join(timeout=1):
        if time.monotonic() > end:
            for process in running.processes:
                process.kill()
            pytest.fail(f"{work.__name__} on {ranks} ranks hangs")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _begin(rank, work, port, folder, ranks, seconds):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds)
    )
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    distributed.barrier()  # none leaves while another may still wait for it
    os._exit(0)  # gloo's own threads are seen to abort a process that takes itself apart
