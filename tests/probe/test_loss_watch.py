"""What a loss takes its softmax of, seen while training takes it: beside softmax_collapse on the same logits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import mlp
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from stepguard.geometry.collapse import softmax_collapse
from stepguard.probe.loss_watch import LossWatch
from stepguard.probe.summary import summary

N, C = 8, 5
torch.manual_seed(3)
X = torch.randn(N, 12)
Y = torch.randint(0, C, (N,))
SOME = Y.where(torch.arange(N) % 3 > 0, -100)
SCALE = 60.0  # so that some samples have collapsed and others have not


def logits(model):
    return SCALE * model(X)


def autocast(model):
    z = logits(model).half()
    with torch.autocast("cpu", torch.float16):
        return F.cross_entropy(z, Y)


def masked(z, y):
    return (F.cross_entropy(z, y, reduction="none") * (y > 1)).sum()


def shifted(model):
    logp = F.log_softmax(logits(model).view(2, 4, C), -1)
    return F.nll_loss(logp[:, :-1].reshape(-1, C), Y.view(2, 4)[:, 1:].reshape(-1))


def by_hand(model):
    return -F.log_softmax(logits(model), -1).gather(-1, Y.unsqueeze(-1)).mean()


class WithLoss(nn.Module):
    """As Hugging Face's models do it."""

    def __init__(self):
        super().__init__()
        self.model = mlp()

    def forward(self, x, y):
        return {"loss": F.cross_entropy(SCALE * self.model(x), y)}


# Each with the dtype in which its softmax is taken, which samples count, and whether its targets are known.
LOSSES = {
    "cross_entropy": (lambda m: F.cross_entropy(logits(m), Y), torch.float32, None, Y),
    "criterion": (lambda m: nn.CrossEntropyLoss()(logits(m), Y), torch.float32, None, Y),
    "ignored": (lambda m: F.cross_entropy(logits(m), SOME), torch.float32, SOME >= 0, Y),
    "masked": (lambda m: masked(logits(m), Y), torch.float32, Y > 1, Y),
    "half": (lambda m: F.cross_entropy(logits(m).half(), Y), torch.float16, None, Y),
    "double": (lambda m: F.cross_entropy(logits(m).double(), Y), torch.float64, None, Y),
    "autocast": (autocast, "float of half", None, Y),
    "half log_softmax": (lambda m: F.nll_loss(F.log_softmax(logits(m).half(), -1), Y), torch.float16, None, Y),
    "own dtype": (
        lambda m: F.nll_loss(F.log_softmax(logits(m).half(), -1, dtype=torch.float32), Y),
        "float of half",
        None,
        Y,
    ),
    "nll_loss": (lambda m: F.nll_loss(F.log_softmax(logits(m), -1), Y), torch.float32, None, Y),
    "nll ignored": (lambda m: F.nll_loss(F.log_softmax(logits(m), -1), SOME), torch.float32, SOME >= 0, Y),
    "sequences": (
        lambda m: F.nll_loss(F.log_softmax(logits(m).view(2, 4, C), -1).transpose(1, 2), Y.view(2, 4)),
        torch.float32,
        None,
        Y,
    ),
    "by hand": (by_hand, torch.float32, None, Y),
    "log of softmax": (lambda m: F.nll_loss(logits(m).double().softmax(-1).log(), Y), torch.float64, None, Y),
    "no targets": (lambda m: F.log_softmax(logits(m), -1).mean(), torch.float32, None, None),
    "logsumexp": (lambda m: logits(m).logsumexp(-1).mean(), torch.float32, None, None),
    "soft": (lambda m: F.cross_entropy(logits(m), F.one_hot(Y, C).float()), torch.float32, None, Y),
    "classes second": (
        lambda m: F.cross_entropy(logits(m).view(2, 4, C).transpose(1, 2), Y.view(2, 4)),
        torch.float32,
        None,
        Y,
    ),
}


def seen_in(model, loss):
    watch = LossWatch(model, model.parameters)
    watch.arm()
    loss(model).backward()
    found = watch.take()
    if found.error:
        raise found.error
    watch.remove()
    assert not _get_current_function_mode_stack()
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_seen_as_it_is(name):
    loss, dtype, counted, target = LOSSES[name]
    torch.manual_seed(0)
    model = mlp()
    found = summary(seen_in(model, loss).softmaxes, 0.01)
    z = logits(model).detach()
    z = z.half().float() if dtype == "float of half" else z.to(dtype)
    keep = torch.ones(N, dtype=torch.bool) if counted is None else counted
    near = softmax_collapse(z[keep], None if target is None else target[keep])
    assert found.samples == keep.sum()
    assert found.dtype == str(z.dtype).removeprefix("torch.")
    assert found.classes == C
    assert found.collapse == pytest.approx(near.collapsed_N.float().mean().item())
    assert found.headroom_min == pytest.approx(near.headroom_N.min().item(), abs=0.02)
    if name != "log of softmax":  # whose logits are those less a number
        assert found.logit_norm == pytest.approx(z[keep].double().norm(dim=-1).mean().item(), rel=2e-3)
    if target is None:
        assert found.zero_terms is None and found.zero_gradients is None
    else:
        assert found.zero_terms == pytest.approx(near.zero_loss_N.float().mean().item())
        z = z.requires_grad_()
        F.cross_entropy(z, target.where(keep, -100)).backward()
        dead = z.grad[keep].gather(-1, target[keep].unsqueeze(-1)) == 0
        expected = None if name == "log of softmax" else dead.float().mean().item()
        assert expected is None or found.zero_gradients == pytest.approx(expected)


def test_some_cases_have_collapsed_and_some_have_not():
    torch.manual_seed(0)
    z = logits(mlp())
    assert 0 < softmax_collapse(z).collapsed_N.sum() < N


def test_samples_that_a_shift_leaves_out_do_not_count():
    found = seen_in(mlp(), shifted)
    assert [s.counts_N().sum().item() for s in found.softmaxes] == [6]


def test_a_loss_inside_the_model(monkeypatch):
    # Whatever other tests compiled in this process: then it would stay outside.
    monkeypatch.setattr("stepguard.probe.module_hooks.anything_compiled", lambda: False)
    torch.manual_seed(0)
    model = WithLoss()
    inside = summary(seen_in(model, lambda m: m(X, Y)["loss"]).softmaxes, 0.01)
    torch.manual_seed(0)
    assert inside == summary(seen_in(mlp(), lambda m: F.cross_entropy(logits(m), Y)).softmaxes, 0.01)


def test_binary_losses():
    torch.manual_seed(0)
    model, labels = mlp(), torch.rand(N, C).round()
    for loss in (
        lambda m: F.binary_cross_entropy_with_logits(logits(m), labels),
        lambda m: F.binary_cross_entropy(logits(m).sigmoid(), labels),
    ):
        found = summary(seen_in(model, loss).softmaxes, 0.01)
        z = logits(model).detach().requires_grad_()
        F.binary_cross_entropy_with_logits(z, labels).backward()
        assert (found.samples, found.classes) == (N * C, 1)
        assert found.collapse == ((z.sigmoid() == 1) | (z.sigmoid() == 0)).float().mean()
        assert 0 < found.zero_gradients == pytest.approx((z.grad == 0).float().mean().item(), abs=0.05)


def test_accumulated_batches_count_together_and_what_leaves_no_gradient_does_not():
    torch.manual_seed(0)
    model, other = mlp(), mlp()
    watch = LossWatch(model, model.parameters)
    watch.arm()
    F.cross_entropy(model(X), Y).backward()
    F.cross_entropy(model(X[:3]), Y[:3]).backward()
    F.cross_entropy(model(X), Y)  # an evaluation
    with torch.no_grad():
        F.cross_entropy(model(X), Y)
    F.cross_entropy(other(X), Y).backward()
    x = X.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(x), Y), x)  # an adversarial example
    assert summary(watch.take().softmaxes, 0.01).samples == N + 3


def test_attention_is_no_loss():
    model = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    found = seen_in(model, lambda m: F.cross_entropy(m(X.view(2, 4, 12)).flatten(0, 1)[:, :C], Y))
    assert len(found.softmaxes) == 1


def test_a_loss_recomputed_by_a_checkpoint_counts_once():
    def loss(model):
        return checkpoint(lambda x: F.cross_entropy(model(x), Y), X, use_reentrant=False)

    assert summary(seen_in(mlp(), loss).softmaxes, 0.01).samples == N


def test_regression_has_no_softmax():
    found = seen_in(mlp(), lambda m: F.mse_loss(m(X), X[:, :C]))
    assert found.softmaxes == [] and not found.stablemax


def test_stablemax_is_told_from_a_softmax():
    from stepguard.geometry.stablemax import stablemax_cross_entropy

    found = seen_in(mlp(), lambda m: stablemax_cross_entropy(m(X), Y))
    assert found.softmaxes == [] and found.stablemax


def test_nothing_is_looked_at_unless_armed():
    model = mlp()
    watch = LossWatch(model, model.parameters)
    F.cross_entropy(model(X), Y).backward()
    assert watch.take().softmaxes == []
    watch.arm()
    watch.take()
    F.cross_entropy(model(X), Y).backward()
    assert watch.take().softmaxes == []


def test_looking_changes_no_bit_of_a_gradient():
    torch.manual_seed(0)
    model = mlp()
    twin = copy.deepcopy(model)
    for name, (loss, *_) in LOSSES.items():
        model.zero_grad(), twin.zero_grad()
        seen_in(model, loss)
        loss(twin).backward()
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True)), (
            name
        )


@pytest.mark.filterwarnings("ignore")
def test_what_is_compiled_is_compiled_once():
    compiled = 0

    def backend(graph, _):
        nonlocal compiled
        compiled += 1
        return graph.forward

    torch.compiler.reset()
    inner = torch.compile(mlp(), backend=backend)
    model = nn.Sequential(inner)
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
    before = compiled
    found = seen_in(model, lambda m: F.cross_entropy(m(X), Y))
    F.cross_entropy(model(X), Y).backward()
    assert compiled == before > 0
    assert summary(found.softmaxes, 0.01).samples == N
