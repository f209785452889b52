"""Where the r of a breach comes from: sample, classes, parameters; against dense float64 Jacobians of each."""

import copy
import gc
import math
import signal

import pytest
import torch
import torch.nn.functional as F
from processes import run_on_ranks
from reference import dense_slopes, mlp, parameters_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import stepguard
from stepguard.guard.culprits import Culprits
from stepguard.probe import wide_head
from stepguard.records import Culprit, JsonLines, Memory, read_runs
from stepguard.records.tally import brief

GENERATOR = torch.Generator().manual_seed(5)
TOKENS = torch.randint(0, 11, (3, 6), generator=GENERATOR)
NEXT = torch.randint(0, 11, (3, 6), generator=GENERATOR)
PADDED = NEXT.masked_fill(torch.arange(18).view(3, 6) % 5 < 3, -100)
X, Y = torch.randn(6, 12, generator=GENERATOR), torch.randint(0, 5, (6,), generator=GENERATOR)
YES = torch.randint(0, 2, (6, 5), generator=GENERATOR).float()


class TiedTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(11, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.qkv(h).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(self.norm(h))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.small, self.large = nn.Linear(12, 8), nn.Linear(8, 5), nn.Linear(8, 7)

    def forward(self, x):
        h = self.body(x).tanh()
        return torch.cat((self.small(h), 10 * self.large(h)), -1)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x):
        h = self.body(x)
        return self.head(h.tanh() + 2 * h.detach())


def normed():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))


def plain(model):
    return F.cross_entropy(model(X), Y)


def tokens(labels):
    return lambda model: F.cross_entropy(model(TOKENS).transpose(1, 2), labels)


def both_heads(model):
    z = model(X)
    return F.cross_entropy(z[:, :5], Y) + F.cross_entropy(z[:, 5:], Y)


def binary(slopes):
    """A binary decision is a softmax over zero and its logit."""
    return torch.stack((torch.zeros_like(slopes), slopes), -1)


# Model, losses (each with a backward of its own), inputs, and from slopes to those of the softmax that is worst.
CASES = {
    "MLP": (mlp, [plain], X, lambda a: a),
    "transformer with a tied head": (TiedTransformer, [tokens(NEXT)], TOKENS, lambda a: a),
    "behind a wide head, by slices": (TiedTransformer, [tokens(NEXT)], TOKENS, lambda a: a),
    "ignored tokens": (TiedTransformer, [tokens(PADDED)], TOKENS, lambda a: a * (PADDED != -100)[..., None]),
    "classes each for itself": (
        mlp,
        [lambda model: F.binary_cross_entropy_with_logits(model(X), YES)],
        X,
        binary,
    ),
    "second of two heads": (TwoHeads, [both_heads], X, lambda a: a[:, 5:]),
    "second of two micro-batches": (
        mlp,
        [lambda model: F.cross_entropy(model(X[:2]), Y[:2]), lambda model: F.cross_entropy(model(3 * X), Y)],
        3 * X,
        lambda a: a,
    ),
    "batch statistics": (normed, [plain], X, lambda a: a),
}


OBSERVED = {"action": "observe", "target": 1e-3, "strict": True}


def explained(model, losses, lr=20.0, **settings):
    """One step beyond the target: the guard after it, the parameters before it, the update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    old = parameters_of(model)
    with stepguard.attach(model, optimizer, **{**OBSERVED, **settings}) as guard:
        for loss in losses:
            loss(model).backward()
        optimizer.step()
    return guard, old, {n: p.detach() - old[n] for n, p in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_contributions_are_those_of_dense_jacobians(case, monkeypatch):
    build, losses, x, softmax = CASES[case]
    if "wide" in case:
        monkeypatch.setattr(wide_head, "WIDE", 9)
    model = build()
    guard, old, update = explained(model, losses)
    culprit = guard.culprit

    def slopes(names):
        return softmax(dense_slopes(model, old, {n: u * (n in names) for n, u in update.items()}, x))

    whole = slopes(set(old))
    spread = whole.amax(-1) - whole.amin(-1)
    assert culprit.sample == int(spread.argmax())
    place = tuple(culprit.position)
    assert place == tuple(int(i) for i in torch.unravel_index(spread.argmax(), spread.shape))
    assert (culprit.rising, culprit.falling) == (int(whole[place].argmax()), int(whole[place].argmin()))
    assert culprit.spread == pytest.approx(float(spread.max()), rel=1e-4) and culprit.r == guard.last.r
    for name, part in culprit.parameters.items():
        row = slopes({name})[place]
        assert part == pytest.approx(float(row[culprit.rising] - row[culprit.falling]), abs=1e-4 * culprit.spread)
    assert set(culprit.parameters) == set(old) and culprit.others == 0
    total = sum(culprit.parameters.values())
    assert total == pytest.approx(culprit.spread, rel=1e-4) and total + culprit.remainder == culprit.spread
    assert sum(culprit.layers.values()) == pytest.approx(total) == sum(culprit.groups.values())


SAID = {
    "MLP": ("cross_entropy of Sequential", 0, 1),
    "ignored tokens": ("cross_entropy of TiedTransformer", 0, 1),
    "second of two heads": ("cross_entropy of TwoHeads, 2 of 2", 0, 1),
    "second of two micro-batches": ("cross_entropy of Sequential", 1, 2),
}


@pytest.mark.parametrize("case", SAID)
def test_softmax_and_micro_batch_are_named(case):
    build, losses, *_ = CASES[case]
    culprit = explained(build(), losses)[0].culprit
    assert (culprit.softmax, culprit.batch, culprit.batches) == SAID[case]


def test_the_label_is_told():
    for case, labels in (("MLP", Y), ("ignored tokens", PADDED)):
        build, losses, *_ = CASES[case]
        culprit = explained(build(), losses)[0].culprit
        assert culprit.label == int(labels[tuple(culprit.position)]) != -100
    build, losses, *_ = CASES["classes each for itself"]
    assert explained(build(), losses)[0].culprit.label is None


@pytest.mark.filterwarnings("ignore:stepguard. r is measured by a finite difference")
def test_what_autograd_is_not_told_of_is_left_over():
    model = Detached()
    guard, old, update = explained(model, [plain])
    culprit = guard.culprit
    assert guard.last.estimator == "difference"
    twin = copy.deepcopy(model).double()
    twin.load_state_dict({n: p.double() for n, p in old.items()})
    z = twin(X[culprit.sample].double())
    names, leaves = zip(*twin.named_parameters(), strict=True)
    gradients = torch.autograd.grad(z[culprit.rising] - z[culprit.falling], leaves)
    for name, gradient in zip(names, gradients, strict=True):
        assert culprit.parameters[name] == pytest.approx(float((gradient * update[name]).sum()), rel=1e-3)
    assert abs(culprit.remainder) > 0.1 * culprit.spread
    assert sum(culprit.parameters.values()) + culprit.remainder == pytest.approx(culprit.spread)
    assert f"{culprit.remainder / culprit.spread:.0%} left over" in culprit.message


def test_of_many_parameters_the_largest_are_named_and_groups_have_their_names():
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(15)), nn.Linear(12, 5))
    groups = [
        {"params": model[:15].parameters(), "name": "body", "lr": 1e3},
        {"params": model[15].parameters(), "name": "head"},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    with stepguard.attach(model, optimizer, target=1e-3) as guard:
        plain(model).backward()
        optimizer.step()
    culprit = guard.culprit
    sizes = [abs(part) for part in culprit.parameters.values()]
    assert len(sizes) == 20 and sizes == sorted(sizes, reverse=True) and culprit.others != 0
    assert set(culprit.groups) == {"body", "head"} and set(culprit.layers) == {str(i) for i in range(16)}
    assert sum(sizes := culprit.groups.values()) + culprit.remainder == pytest.approx(culprit.spread)
    named = sum(part for name, part in culprit.parameters.items() if not name.startswith("15."))
    assert named + culprit.others == pytest.approx(culprit.groups["body"], abs=1e-2 * max(map(abs, sizes)))


def test_of_a_quantile_the_sample_is_explained_that_counts():
    model = mlp()
    guard, old, update = explained(model, [plain], quantile=0.8)  # of six samples that is the second
    slopes = dense_slopes(model, old, update, X)
    spread = slopes.amax(-1) - slopes.amin(-1)
    assert guard.culprit.sample == int(spread.argsort(descending=True)[1])


# When

ROWS = {
    "a breach at each step": ([2.0] * 20, [0, 1, 3, 7, 15]),
    "r that doubles": ([2.0, 4.0, 7.9, 16.0, 16.0, 31.9, 32.0], [0, 1, 3, 6]),
    "a step that is not finite": ([math.nan, math.inf, 2.0, 2.0], [2, 3]),
}


@pytest.mark.parametrize("row", ROWS)
def test_few_of_many_breaches_are_explained(row):
    r, wanted = ROWS[row]
    culprits = Culprits(mlp(), torch.optim.SGD(mlp().parameters()), None)
    assert [step for step in range(len(r)) if culprits.wants(step, r[step])] == wanted


def test_a_breach_after_a_long_calm_is_a_new_one_also_for_a_resumed_run():
    first = Culprits(mlp(), torch.optim.SGD(mlp().parameters()), None)
    assert [first.wants(step, 100.0 - step) for step in range(5)] == [True, True, False, True, False]
    for step, wanted in ((50, False), (400, True)):
        resumed = Culprits(mlp(), torch.optim.SGD(mlp().parameters()), None)
        resumed.load_state_dict(first.state_dict())
        assert resumed.wants(step, 2.0) == wanted


def test_calm_steps_are_not_explained(monkeypatch):
    monkeypatch.setattr("stepguard.probe.probe.explained", lambda *args: pytest.fail("explained"))
    guard, *_ = explained(mlp(), [plain], lr=1e-3, target=1.0)
    assert guard.last.r < 1 and guard.culprit is None


# Promises


def hooked():
    """Hooks everywhere, which count and change gradients."""
    model, heard = mlp(dropout=0.3), []

    def hear(*args):
        heard.append(len(args))

    def halve(module, args, out):
        if out.requires_grad:
            out.register_hook(lambda gradient: hear() or 0.5 * gradient)

    model[1].register_full_backward_hook(hear)
    model[3].register_full_backward_pre_hook(hear)
    model[1].register_forward_hook(halve)
    model[0].weight.register_hook(hear)
    model[3].weight.register_post_accumulate_grad_hook(hear)
    return model, heard


def trained(explains, monkeypatch):
    with monkeypatch.context() as patch:
        if explains:
            patch.setattr(Culprits, "wants", lambda self, step, r: True)
        torch.manual_seed(0)
        model, heard = hooked()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
        guard = stepguard.attach(model, optimizer, target=0.5, strict=True) if explains is not None else None
        for step in range(6):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            plain(model).backward()
            optimizer.step()
        end = [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.get_rng_state()]
        if guard:
            assert (guard.culprit is not None and guard.culprit.step == 5) == explains
            assert not explains or guard.culprit.remainder == pytest.approx(0, abs=1e-4 * guard.culprit.spread)
            guard.detach()
        return end, heard


def test_explaining_changes_nothing_and_no_hook_hears_of_it(monkeypatch):
    monkeypatch.setattr(Culprits, "wants", lambda self, step, r: False)
    without, heard = trained(False, monkeypatch)
    explained, heard_too = trained(True, monkeypatch)
    assert heard == heard_too and len(heard) > 0
    for one, other in zip(without, explained, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Counting(nn.Module):
    """Runs again in the backward pass, and counts that."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.runs = nn.Linear(12, 8), nn.Linear(8, 5), 0

    def hidden(self, x):
        self.runs += 1
        return self.body(x).tanh()

    def forward(self, x):
        return self.head(checkpoint(self.hidden, x, use_reentrant=False))


def test_what_a_backward_pass_runs_again_leaves_no_trace():
    model = Counting()
    guard, *_ = explained(model, [plain])
    assert model.runs == 2 and guard.culprit.remainder == pytest.approx(0, abs=1e-4 * guard.culprit.spread)


def broken(*args):
    raise RuntimeError("no memory left")


def test_an_explanation_that_fails_costs_nothing_else(monkeypatch, caplog):
    monkeypatch.setattr("torch.autograd.grad", broken)
    model, memory = mlp(), Memory()
    guard, old, update = explained(model, [plain], action="clamp", recorders=[memory])
    assert guard.culprit is None and guard.last.scale < 1
    assert [e.kind for e in memory.events] == ["found", "clamp"]
    assert all(p.grad is not None and p.is_leaf for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of the user's own pass
def test_hooks_on_all_modules_of_the_process_are_left_alone():
    handle = nn.modules.module.register_module_full_backward_hook(lambda *args: None)
    try:
        guard, *_ = explained(mlp(), [plain])
    finally:
        handle.remove()
    assert guard.culprit is None and guard.last.r > 1


def test_ctrl_c_waits_for_the_step(monkeypatch):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("and it fails")

    monkeypatch.setattr("stepguard.probe.probe.explained", interrupted)
    model, memory = mlp(), Memory()
    with pytest.raises(KeyboardInterrupt):
        explained(model, [plain], action="clamp", recorders=[memory])
    assert memory.readings[0].scale < 1 and memory.events[-1].kind == "clamp"


def test_no_tensor_is_left_behind(monkeypatch):
    model = TiedTransformer()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with stepguard.attach(model, optimizer, action="observe", target=1e-3, cadence="every") as guard:

        def step():
            optimizer.zero_grad()
            tokens(NEXT)(model).backward()
            optimizer.step()

        for _ in range(4):
            step()
            gc.collect()  # what other tests have left goes in several rounds
        counts = []
        for explains in (False, True):
            monkeypatch.setattr(Culprits, "wants", lambda self, step, r, explains=explains: explains)
            step()
            gc.collect()
            gc.disable()  # what only a collection would find is there for long
            step()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
            gc.enable()
        assert guard.culprit.step == 7 and counts[1] <= counts[0]  # the rest of theirs may still go


# Records


def test_it_is_an_event_that_is_read_again(tmp_path):
    lines, memory = JsonLines(tmp_path), Memory()
    guard, *_ = explained(mlp(), [plain], recorders=[lines, memory])
    (run,) = read_runs(tmp_path)
    (event,) = [e for e in run.events if e.kind == "culprit"]
    assert event.data == guard.culprit.as_dict() and Culprit.of(event) == guard.culprit
    assert event.message == guard.culprit.message == memory.events[-1].message
    assert event.message.startswith(f"step 0: r = {guard.last.r:.3g} comes from sample {guard.culprit.sample}: class ")
    others = [e for e in run.events if e.kind != "culprit"]
    assert [(e.data, Culprit.of(e)) for e in others] == 2 * [(None, None)]
    assert brief(event) == f"step 0: {guard.culprit.brief}"
    later = event._replace(data={**event.data, "of a later version": 1})
    assert Culprit.of(later) == guard.culprit and Culprit.of(event._replace(data={"step": 0})) is None


# Several processes


def ranked(rank, folder):
    torch.manual_seed(0)
    model = DistributedDataParallel(mlp())
    generator = torch.Generator().manual_seed(rank)
    x, y = torch.randn(4, 12, generator=generator) * (1 + rank), torch.randint(0, 5, (4,), generator=generator)
    guard, old, update = explained(model.module, [lambda _: F.cross_entropy(model(x), y)], lr=5.0)
    return guard.last.r, guard.culprit, old, update, x


def test_each_rank_explains_its_own(tmp_path):
    found = run_on_ranks(ranked, tmp_path)
    assert found[0][0] == found[1][0] and found[0][1].r < found[1][1].r == pytest.approx(found[1][0])
    for rank, (_, culprit, old, update, x) in enumerate(found):
        slopes = dense_slopes(mlp(), old, update, x)
        spread = slopes.amax(-1) - slopes.amin(-1)
        assert (culprit.rank, culprit.sample) == (rank, int(spread.argmax())) and f"on rank {rank}" in culprit.message
        assert sum(culprit.parameters.values()) == pytest.approx(float(spread.max()), rel=1e-4)
