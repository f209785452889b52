"""Parameters sharded by fully_shard, with two and four gloo processes: r is right, ranks agree, none waits in vain."""

import pytest
import torch
from processes import run_on_ranks
from reference import dense_r, mlp
from sharded_runs import MISHAPS, STEPS, WAYS, Checkpointed, batch, everything


@pytest.fixture(scope="module", params=[2, 4], ids=["two ranks", "four ranks"])
def ranks(request, tmp_path_factory):
    return run_on_ranks(everything, tmp_path_factory.mktemp("ranks"), request.param)


def same_everywhere(found):
    """Of every rank the same moves and the same decisions."""
    first = found[0]
    for other in found[1:]:
        assert [(r.step, r.r, r.scale) for r in other["readings"]] == [
            (r.step, r.r, r.scale) for r in first["readings"]
        ]
        assert other["events"] == first["events"]
        for mine, theirs in zip(first["moves"], other["moves"], strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("way", [*WAYS, "accumulated", "screened"])
def test_r_is_that_of_the_whole(ranks, way):
    found = [rank["ways"][way] for rank in ranks]
    same_everywhere(found)
    assert [r.step for r in found[0]["readings"]] == list(range(STEPS))
    estimators = {r.estimator for r in found[0]["readings"]}
    assert estimators == {"difference"} if way == "no forward mode" else estimators <= {"forward", "secant"}
    assert "secant" in estimators or way != "screened"
    for reading in found[0]["readings"]:  # of plain SGD
        assert reading.lr * reading.gradient_norm == pytest.approx(reading.tau, rel=1e-4)
        assert reading.weight_norm is None and reading.samples == (8 if way == "accumulated" else 4)
    if way in ("dropout", "no forward mode"):  # r by chance, or by a reference that there is none of
        return
    twin = Checkpointed(again=False) if way == "activations made again" else mlp()
    for reading, old, new in zip(found[0]["readings"], found[0]["moves"], found[0]["moves"][1:], strict=False):
        parts = range(2 if way == "accumulated" else 1)
        x = torch.cat([batch(reading.step + 50 * part, rank)[0] for part in parts for rank in range(len(ranks))])
        r = dense_r(twin, old, new, x)
        moved = torch.cat([(new[name] - old[name]).flatten() for name in old]).norm()
        assert reading.tau * reading.scale == pytest.approx(float(moved), rel=1e-4)
        loose = way in ("computing in bfloat16", "screened")
        assert reading.r * reading.scale == pytest.approx(r, rel=3e-2 if loose else 1e-4)
        assert r <= reading.target * (1 + (3e-2 if loose else 1e-4))
    assert all(r.scale < 1 for r in found[0]["readings"]) or way == "screened"


@pytest.mark.parametrize("way", WAYS)
def test_a_look_changes_nothing(ranks, way):
    for rank in ranks:
        alone, watched = rank["looks"][way]
        assert watched["readings"] and not watched["why"]
        assert len(alone["end"]) == len(watched["end"])
        assert all(torch.equal(a, b) for a, b in zip(alone["end"], watched["end"], strict=True))


@pytest.mark.parametrize("mishap", MISHAPS)
def test_where_one_rank_fails_none_measures_and_none_waits(ranks, mishap):
    found = [rank["mishaps"][mishap] for rank in ranks]
    same_everywhere(found)
    assert [r.step for r in found[0]["readings"]] == [0, 2, 3]
    assert (1, "unmeasured") in found[0]["events"]
    assert {why for rank in found for why in rank["why"]} >= {w for w in found[0]["why"] if "Another rank" in w}


@pytest.mark.parametrize("mishap", ["no batch", "no softmax"])
def test_a_rank_without_samples_lends_to_the_others(ranks, mishap):
    found = [rank["mishaps"][mishap] for rank in ranks]
    same_everywhere(found)
    assert [r.step for r in found[0]["readings"]] == list(range(STEPS))
    old, new = found[0]["moves"][1:3]
    x = torch.cat([batch(1, rank)[0] for rank in range(1, len(ranks))])
    assert found[0]["readings"][1].r * found[0]["readings"][1].scale == pytest.approx(
        dense_r(mlp(), old, new, x), rel=1e-4
    )


def test_nan_in_one_shard_is_kept_from_all(ranks):
    found = [rank["mishaps"]["nan in a shard"] for rank in ranks]
    same_everywhere(found)
    assert found[0]["readings"][1].scale == 0
    assert all(t.isfinite().all() for rank in found for t in rank["end"])
    steps = {float(t) for rank in found for t in rank["end"] if t.ndim == 0}
    assert steps == {STEPS - 1}  # of Adam's counters, on all ranks


def test_what_cannot_be_measured_is_refused(ranks):
    for rank in ranks:
        assert "no tensor or pipeline parallelism" in rank["refused"]["tensors"]
        assert "Use fully_shard" in rank["refused"]["legacy"]


def test_collapse_is_seen_as_one(ranks):
    (parameters, readings, events), *others = [rank["collapse"] for rank in ranks]
    assert [r.step for r in readings] == list(range(STEPS)) and readings[0].samples == 4 * len(ranks)
    assert {"warning", "cure_on"} <= {kind for _, kind in events}
    for theirs, their_readings, their_events in others:
        assert all(torch.equal(parameters[name], theirs[name]) for name in parameters)
        assert [(r.collapse, r.headroom_nats) for r in their_readings] == [
            (r.collapse, r.headroom_nats) for r in readings
        ]
        assert their_events == events


def test_all_ranks_are_suggested_the_same_rate(ranks):
    (shards, whole), *others = [rank["suggested"] for rank in ranks]
    assert shards == pytest.approx(whole, rel=1e-4)
    assert all(theirs == [shards, whole] for theirs in others)
