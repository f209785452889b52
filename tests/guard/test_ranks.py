"""Promise 4: the same decision on every rank, with gloo processes."""

import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from processes import run_on_ranks
from reference import dense_r, mlp, parameters_of
from torch.nn.parallel import DistributedDataParallel

import stepguard
from stepguard.records import Memory, read_runs


def raising(*args):
    raise RuntimeError("broken")


def guarded(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    memory, moves = Memory(), [parameters_of(model.module)]
    warnings.simplefilter("ignore", UserWarning)
    guard = stepguard.attach(model, optimizer, target=0.05, recorders=[memory], log_dir=folder / "log")
    for index in range(6):
        x, y = batch(index, rank)
        if index == 4 and rank == 0:
            x.fill_(float("nan"))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if index == 2 and rank == 0:
            guard._probe.take()  # this rank has no batch, so that the other decides
        if index == 3 and rank == 1:
            guard._probe.spreads = raising
        optimizer.step()
        vars(guard._probe).pop("spreads", None)
        moves.append(parameters_of(model.module))
    guard.detach()
    return moves, memory.readings, [e for e in memory.events if e.kind != "culprit"]  # each rank has its own


def batch(index, rank, uneven=0):
    generator = torch.Generator().manual_seed(10 * index + rank)
    size = 4 + uneven * rank
    return torch.randn(size, 12, generator=generator) * (1 + 3 * rank), torch.randint(
        0, 5, (size,), generator=generator
    )


@pytest.mark.parametrize("ranks", [2, 4], ids=["two ranks", "four ranks"])
def test_ranks_decide_as_one(ranks, tmp_path):
    (moves, readings, events), *others = run_on_ranks(guarded, tmp_path, ranks)
    for their_moves, their_readings, their_events in others:
        for mine, theirs in zip(moves, their_moves, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert [(r.step, r.r, r.scale) for r in readings] == [(r.step, r.r, r.scale) for r in their_readings]
        assert [(e.step, e.kind) for e in events] == [(e.step, e.kind) for e in their_events]
    for reading in [r for r in readings if r.step < 4]:
        x = torch.cat([batch(reading.step, rank)[0] for rank in range(reading.step == 2, ranks)])
        old, new = moves[reading.step : reading.step + 2]
        assert reading.r * reading.scale == pytest.approx(dense_r(mlp(), old, new, x), rel=1e-4)
        assert reading.scale < 1
    assert [r.step for r in readings] == [0, 1, 2, 4, 5] and readings[3].scale == 0
    assert [e.kind for e in events if e.step == 3] == ["unmeasured"]
    assert len(list((tmp_path / "log").glob("events*"))) == 1  # the first rank alone writes
    (run,) = read_runs(tmp_path / "log")
    assert repr([*run.readings]) == repr(readings) and [s["world_size"] for s in run.starts] == [ranks]
    assert {(r.gradient_norm, r.weight_norm) for r in readings[:3]} == {
        (r.gradient_norm, r.weight_norm) for r in others[0][1][:3]
    }


def disagreeing(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    memory = Memory()
    with stepguard.attach(model, optimizer, recorders=[memory]) as guard:
        guard._pacing.worth_watching = lambda step: rank == 0 or step != 20
        guard._pacing._trigger.due = lambda step, norms: "old" if rank and step in (20, 22) else None
        for index in range(24):
            x, y = batch(index, rank)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return [(r.step, r.r, r.scale) for r in memory.readings]


def test_a_rank_that_would_rather_wait_is_waited_for(tmp_path):
    ours, theirs = run_on_ranks(disagreeing, tmp_path)
    assert ours == theirs
    assert [step for step, _, _ in ours] == [22]  # at 20 it had not watched


def uneven(rank, folder):
    found = []
    for attached in (False, True):
        torch.manual_seed(0)
        model = DistributedDataParallel(mlp())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        memory = Memory()
        with model.join(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            guards = [
                stepguard.attach(model, optimizer, recorders=[memory]),
                stepguard.monitor_collapse(model, optimizer, recorders=[memory], cadence=1),
            ]
            for guard in guards if not attached else ():
                guard.detach()
            for index in range(3 + 2 * rank):  # the first rank has fewer batches
                x, y = batch(index, rank, uneven=1)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        found.append((parameters_of(model.module), [e.message for e in memory.events if e.kind == "unmeasured"]))
    return found


def test_ranks_that_run_out_of_batches(tmp_path):
    for rank, ((alone, _), (guarded, why)) in enumerate(run_on_ranks(uneven, tmp_path)):
        assert all(torch.equal(alone[name], guarded[name]) for name in alone)
        assert len(why) == 2 * (3 + 2 * rank) and all("Inside DistributedDataParallel.join" in w for w in why)


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
    assert len(list((tmp_path / "log").glob("events*"))) == 1


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


def left_alone(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    memory, found = Memory(), {}
    warnings.simplefilter("ignore", UserWarning)
    guard = stepguard.attach(model, optimizer, recorders=[memory])
    for index in range(5):
        x, y = batch(index, rank)
        optimizer.zero_grad()
        try:
            F.cross_entropy(model(x), y).backward()
        except RuntimeError:
            found["raised at"] = index
            break
        if index == 3 and rank == 1:
            torch.save({}, folder / "1.pt")
            os._exit(0)  # killed between backward and step
        before = parameters_of(model.module)
        optimizer.step()
        found["moved"] = any(not torch.equal(before[name], p) for name, p in model.module.named_parameters())
    guard.detach()
    found |= {"step": guard.step, "events": [(e.step, e.kind) for e in memory.events]}
    torch.save(found, folder / "0.pt")
    os._exit(0)  # there is nobody to wait for


def test_a_rank_that_is_killed_leaves_the_other_with_an_error_of_training(tmp_path):
    found, _ = run_on_ranks(left_alone, tmp_path, seconds=60)
    assert found["step"] == 4 and found["moved"] and (3, "unmeasured") in found["events"]
    assert found["raised at"] == 4  # by DistributedDataParallel
