"""The demo's runs against plain loops written out here, with no monitor in sight."""

import pytest
import torch
import torch.nn.functional as F

from stepguard.cli.grokking.addition import addition, mlp
from stepguard.cli.grokking.training import PerpGrad, Run, train
from stepguard.geometry.collapse import softmax_collapse
from stepguard.records import Memory

SHORT = Run(modulus=11, seed=42, lr=0.01, epochs=16)


def flat(tensors):
    return torch.cat([t.detach().flatten().double() for t in tensors])


def perpendicular(gradients, weights, restore_norm):
    """Section 5 of the paper on one long vector in float64."""
    g, w = flat(gradients), flat(weights)
    left = g - w.dot(g) / w.dot(w) * w
    return left * (g.norm() / left.norm()) if restore_norm else left


def by_hand(run):
    """Loss, accuracies in percent, and logits of each epoch."""
    torch.manual_seed(run.seed)
    data, model = addition(run.modulus), mlp(run.modulus)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=0.0)
    for _ in range(run.epochs):
        batch = data.train_K[torch.randperm(len(data.train_K))]
        optimizer.zero_grad()
        logits = model(data.pairs_NP[batch]).to(run.loss_dtype)
        loss = F.cross_entropy(logits, data.sums_N[batch])
        loss.backward()
        if run.perp_grad:
            change(list(model.parameters()), run.perp_grad)
        optimizer.step()
        guessed = model(data.pairs_NP).argmax(-1)
        right = [
            sum(bool(guessed[i] == data.sums_N[i]) for i in part) / len(part) for part in (data.train_K, data.test_K)
        ]
        yield loss.item(), 100 * right[0], 100 * right[1], logits.detach()


def change(parameters, how):
    for group in [parameters] if how.over == "all" else [[p] for p in parameters]:
        new = perpendicular([p.grad for p in group], group, how.restore_norm)
        for p, part in zip(group, new.split([p.numel() for p in group]), strict=True):
            p.grad.copy_(part.view_as(p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plain_runs_are_adamw_to_the_last_bit(dtype):
    run = SHORT._replace(loss_dtype=dtype)
    frames, expected = list(train(run)), list(by_hand(run))
    assert [frame.step for frame in frames] == list(range(16))
    assert [frame.loss for frame in frames] == [loss for loss, *_ in expected]
    for frame, (_, right, right_unseen, logits) in zip(frames, expected, strict=True):
        assert frame.train_accuracy == pytest.approx(right) and frame.test_accuracy == pytest.approx(right_unseen)
        near = softmax_collapse(logits)
        assert frame.reading.step == frame.step and frame.reading.samples == len(logits) == 48
        assert frame.reading.collapse == pytest.approx(near.collapsed_N.float().mean().item())
        assert frame.reading.headroom_min == pytest.approx(near.headroom_N.min().item(), abs=0.01)
    assert frames[-1].train_accuracy > frames[0].train_accuracy


@pytest.mark.parametrize("over", ["tensor", "all"])
@pytest.mark.parametrize("restore_norm", [True, False])
def test_perp_grad_runs_are_those_of_the_formula(over, restore_norm):
    run = SHORT._replace(perp_grad=PerpGrad(over, restore_norm))
    # Adam forgives a gradient its length: after 16 epochs the ways to restore it or not are some 5% apart.
    losses = [frame.loss for frame in train(run)]
    assert losses == pytest.approx([loss for loss, *_ in by_hand(run)], rel=1e-4)
    plain = [frame.loss for frame in train(SHORT)]
    assert losses[0] == plain[0] and losses[-1] != pytest.approx(plain[-1], rel=1e-2)


def test_alignment_is_read_before_perp_grad_takes_it_out():
    frames = list(train(SHORT._replace(perp_grad=PerpGrad("all"))))
    assert frames[-1].reading.nlm_alignment > 0.05


def test_runs_that_take_turns_see_what_each_would_alone():
    one, other = SHORT, SHORT._replace(seed=7, perp_grad=PerpGrad())
    together = [list(frames) for frames in zip(*zip(train(one), train(other), strict=True), strict=True)]
    assert [f.loss for f in together[0]] == [f.loss for f in train(one)]
    assert [f.loss for f in together[1]] == [f.loss for f in train(other)]


def test_events_are_those_of_their_epoch_and_recorded_elsewhere_too():
    memory = Memory()
    with pytest.warns(UserWarning, match="softmax collapse is near"):
        frames = list(train(Run(11, 42, lr=0.03, epochs=30, loss_dtype=torch.float16, recorders=(memory,))))
    events = [event for frame in frames for event in frame.events if event.kind != "found"]
    assert [event.kind for event in events] == ["warning", "onset"]
    assert all(event.step == frame.step for frame in frames for event in frame.events)
    assert [event for event in memory.events if event.kind != "found"] == events
    assert memory.collapses == [frame.reading for frame in frames]
    assert frames[-1].reading.collapse > 0.5
