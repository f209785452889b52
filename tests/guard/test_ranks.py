"""Promise 4: the same decision on every rank, with two gloo processes."""

import warnings

import torch
import torch.nn.functional as F
from processes import run_on_ranks
from reference import mlp
from torch.nn.parallel import DistributedDataParallel

import stepguard
from stepguard.records import Memory


def guarded(rank, folder):
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
    return list(model.module.parameters()), memory.readings, memory.events


def test_two_ranks_decide_as_one(tmp_path):
    ours, theirs = run_on_ranks(guarded, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours[0], theirs[0], strict=True))
    assert [(r.step, r.r, r.scale) for r in ours[1]] == [(r.step, r.r, r.scale) for r in theirs[1]]
    assert any(r.scale < 1 for r in ours[1])
    assert [e.kind for e in ours[2] if e.step in (3, 4)] == [e.kind for e in theirs[2] if e.step in (3, 4)]
    assert "unmeasured" in [e.kind for e in ours[2] if e.step == 3]
    assert len(list((tmp_path / "log").iterdir())) == 1  # rank 0 alone writes


def watched(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory = Memory()
    warnings.simplefilter("ignore", UserWarning)
    monitor = stepguard.monitor_collapse(
        model, optimizer, cadence=1, on_warning="perp_grad", recorders=[memory], log_dir=folder / "log"
    )
    torch.manual_seed(rank)
    for index in range(6):
        y = torch.randint(0, 5, (4 + rank,))
        if index == 2 and rank == 1:
            y.fill_(-100)  # this rank has no sample that counts
        optimizer.zero_grad()
        # on rank 0 alone the softmax comes near to collapse
        scale = 1.0 if rank else float(index)
        loss = F.cross_entropy(1e-3 * model(torch.randn(4 + rank, 12)) + 8 * scale * F.one_hot(y.clamp(0), 5), y)
        (loss if loss.isfinite() else 0 * model(torch.randn(1, 12)).sum()).backward()
        if index == 1 and rank == 1:
            monitor._watch.take()  # this rank loses its batch
        optimizer.step()
    curing = monitor.curing
    monitor.detach()
    return list(model.module.parameters()), memory.collapses, memory.events, curing


def test_two_ranks_see_collapse_as_one(tmp_path):
    ours, theirs = run_on_ranks(watched, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours[0], theirs[0], strict=True))
    shared = ("step", "samples", "collapse", "headroom_nats", "headroom_min", "curing", "every")
    seen = [[tuple(getattr(r, name) for name in shared) for r in rank[1]] for rank in (ours, theirs)]
    assert seen[0] == seen[1]
    assert [row[:2] for row in seen[0]] == [(0, 9), (1, 4), (2, 4), (3, 9), (4, 9), (5, 9)]
    assert [e[:2] for e in ours[2]] == [e[:2] for e in theirs[2] if e.kind != "unmeasured"]
    assert [e.kind for e in ours[2]] == ["warning", "cure_on", "onset"] and ours[3] and theirs[3]
    assert len(list((tmp_path / "log").iterdir())) == 1


def surprised(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    memory = Memory()
    guard = stepguard.attach(model, optimizer, recorders=[memory])
    torch.manual_seed(rank)
    for index in range(65):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 12)), torch.randint(0, 5, (4,))).backward()
        optimizer.param_groups[0]["lr"] = 100.0 if index == 60 else 1e-3  # too late to be known before the forward
        if index == 30 and rank == 1:
            guard._pacing._trigger._until = 32  # one rank alone wants to measure
        optimizer.step()
    guard.detach()
    return list(model.module.parameters()), memory.readings


def test_what_one_rank_wants_to_measure_all_do_and_a_long_step_is_cut_alike(tmp_path):
    ours, theirs = run_on_ranks(surprised, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours[0], theirs[0], strict=True))
    seen = [[(r.step, r.estimator == "prediction", r.scale) for r in rank[1]] for rank in (ours, theirs)]
    assert seen[0] == seen[1]
    assert {30, 31, 60, 61} <= {step for step, _, _ in seen[0]}
    assert [(step, 0 < scale < 1) for step, predicted, scale in seen[0] if predicted and step > 50] == [(60, True)]


def spiked(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    memory = Memory()
    with stepguard.attach(model, optimizer, recorders=[memory], cadence="every") as guard:
        torch.manual_seed(rank)
        for index in range(45):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(4, 12)), torch.randint(0, 5, (4,))).backward()
            optimizer.param_groups[0]["lr"] = 1e-2 * (1e4 if index >= 35 else 1.0)
            if index == 40:
                guard._calm._rates.append([1e-2 * (1 + rank)] * 1)  # what is usual need not be the same to the bit
            optimizer.step()
    return list(model.module.parameters()), [(r.step, r.r, r.scale) for r in memory.readings]


def test_ranks_go_back_to_calm_alike(tmp_path):
    ours, theirs = run_on_ranks(spiked, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(ours[0], theirs[0], strict=True))
    assert ours[1] == theirs[1]
    assert {round(scale * 1e4, 2) for step, _, scale in ours[1] if step >= 35} == {1.0}
