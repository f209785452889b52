"""Every case of the matrix: what each parameter adds to the worst spread, beside a float64 reference of its own."""

import copy

import pytest
import torch
from matrix.task import SEED, around, same, sgd, trail
from matrix.test_matrix import CASES

import stepguard

QUICK = {
    "MLP under bf16 autocast",
    "MLP in bf16",
    "deep MLP with GELU and dropout",
    "CNN with BatchNorm",
    "small GPT with tied embedding and head, dropout",
    "EmbeddingBag",
    "Embedding with sparse gradients",
    "torch.jit.script",
    "gradient reversal",
    "GPT-2 with labels",
    "GAN discriminator, generated samples detached",
    "two heads, a backward for each",
}
"""All others take most of a minute."""
MEASURED = [
    pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
    for case in CASES
    if not case.refused
]
NOT_EXPLAINED = {
    "checkpointed blocks, reentrant": "PyTorch has no gradient of chosen tensors there",
    "GPT-2 with gradient checkpointing, reentrant": "likewise",
    "torch.jit.script": "a scripted module takes no other parameters",
    "torch.jit.script of a part": "likewise",
}
LEFT_OVER = {
    "detached path": "autograd is told of less than the forward does",
    ".item() in the forward": "likewise",
    ".data in the forward": "likewise",
    "inference_mode in the forward": "likewise",
    "no_grad in the forward": "likewise",
    "logits divided by their detached standard deviation": "likewise",
    "backward of the head first, of the body by hand": "likewise, until the user goes on by hand",
    "vector quantizer with EMA codebook": "and of more by a straight-through estimator",
    "gradient reversal": "and of the opposite here",
}
OTHER_CLASSES = {
    "classes masked by masked_fill",
    "classes masked by the dtype's lowest number",
    "classes masked by adding -1e9",
    "classes masked in place",
    "one class masked in place",
    "NT-Xent, the diagonal masked",
}
"""Their reference counts only the classes that are not masked out."""


def reference(task, before, update, size=1e-6):
    """The worst sample's spread, its two classes, and what each parameter adds, by central differences in float64."""

    def slopes(moving):
        sides = []
        for sign in (1, -1):
            twin = copy.deepcopy(before).double()
            for name, p in twin.named_parameters():
                if name in moving:
                    p.data = p.data + sign * size * update[name]
            torch.manual_seed(SEED)
            sides.append([z.detach() for z in task.logits(twin)])
        return [row / (2 * size) for a, b in zip(*sides, strict=True) for row in (a - b).reshape(-1, a.shape[-1])]

    whole = slopes(set(update))
    worst = max(range(len(whole)), key=lambda i: float(whole[i].max() - whole[i].min()))
    rising, falling = int(whole[worst].argmax()), int(whole[worst].argmin())
    rows = {name: slopes({name})[worst] for name in update}
    parts = {name: float(row[rising] - row[falling]) for name, row in rows.items()}
    return float(whole[worst].max() - whole[worst].min()), (rising, falling), parts


def explained(case):
    """A case whose every step is a breach."""

    def build():
        task = case.build()
        return task._replace(options={**task.options, "target": 1e-12})

    return case._replace(build=build)


@pytest.mark.parametrize("case", MEASURED)
@pytest.mark.filterwarnings("ignore")
def test_contributions_are_right(case):
    torch.manual_seed(SEED)
    task = explained(case).build()
    plain = task.plain or task.model
    optimizer = sgd(task.model, 0.05)
    with stepguard.attach(task.model, optimizer, action="observe", **task.options) as guard:
        before = copy.deepcopy(plain)
        torch.manual_seed(SEED)
        with around(task):
            loss = task.loss()
        loss.backward()
        optimizer.step()
        after = dict(plain.named_parameters())
        update = {n: after[n].detach().double() - p.detach().double() for n, p in before.named_parameters()}
        torch.manual_seed(SEED)
        spread, classes, parts = reference(task, before, update)
    culprit = guard.culprit
    if case.name in NOT_EXPLAINED:
        assert culprit is None and guard.last.r > 0
        return
    assert culprit.spread == pytest.approx(spread, rel=case.tolerance)
    assert sum(culprit.parameters.values()) + culprit.others + culprit.remainder == pytest.approx(culprit.spread)
    if case.name in LEFT_OVER:
        assert abs(culprit.remainder) > case.tolerance * spread and "left over" in culprit.message
        return
    assert abs(culprit.remainder) <= case.tolerance * spread
    if case.name not in OTHER_CLASSES:
        assert (culprit.rising, culprit.falling) == classes
    for name, part in culprit.parameters.items():
        assert part == pytest.approx(parts[name], abs=case.tolerance * spread), name


@pytest.mark.parametrize("case", MEASURED)
@pytest.mark.filterwarnings("ignore")
def test_explaining_is_invisible(case):
    alone, guarded = trail(case, guarded=False), trail(explained(case), guarded=True)
    differing = [i for i, (one, other) in enumerate(zip(alone, guarded, strict=True)) if not same(one, other)]
    assert not differing, f"{alone[differing[0]]} became {guarded[differing[0]]}"[:2000]
