"""Functions run by several gloo processes on this machine."""

import os
import socket

import torch
from torch import distributed, multiprocessing


def run_on_ranks(work, folder, ranks=2):
    """``work(rank, folder)`` in as many processes; what each returned, by rank."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(_begin, (work, port, folder, ranks), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _begin(rank, work, port, folder, ranks):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    torch.save(work(rank, folder), folder / f"{rank}.pt")
    distributed.barrier()  # none leaves while another may still wait for it
    os._exit(0)  # gloo's own threads are seen to abort a process that takes itself apart
