"""Promise 4: the same decision on every rank, with two gloo processes."""

import socket
import warnings

import torch
import torch.nn.functional as F
from reference import mlp
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import stepguard
from stepguard.records import Memory


def work(rank, port, folder):
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    memory = Memory()
    warnings.simplefilter("ignore", UserWarning)
    guard = stepguard.attach(model, optimizer, target=0.05, recorders=[memory], log_dir=folder / "log")
    torch.manual_seed(rank)
    for index in range(6):
        x, y = torch.randn(4, 12) * (1 + 3 * rank), torch.randint(0, 5, (4,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if index == 3 and rank == 1:
            guard._probe.take()  # this rank loses its batch and cannot measure
        if index == 4 and rank == 0:
            x.data.fill_(float("nan"))
        optimizer.step()
    guard.detach()
    torch.save([list(model.module.parameters()), memory.readings, memory.events], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_decide_as_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(work, (port, tmp_path), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(p, q) for p, q in zip(ours[0], theirs[0], strict=True))
    assert [(r.step, r.r, r.scale) for r in ours[1]] == [(r.step, r.r, r.scale) for r in theirs[1]]
    assert any(r.scale < 1 for r in ours[1])
    assert [e.kind for e in ours[2] if e.step in (3, 4)] == [e.kind for e in theirs[2] if e.step in (3, 4)]
    assert "unmeasured" in [e.kind for e in ours[2] if e.step == 3]
    assert len(list((tmp_path / "log").iterdir())) == 1  # rank 0 alone writes
