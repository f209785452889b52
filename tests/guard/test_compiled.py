"""torch.compile of the model, of parts, of the loss and of the optimizer: nothing is compiled because of a guard."""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

import stepguard
from stepguard.records import Memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*will be ignored"),  # a record_function of the optimizer, by dynamo itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # inside dynamo
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # dynamo looks at a loss
]
X = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 5


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)

    def forward(self, x):
        return self.norm(self.linear(x)).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = Body(), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.body(x))


class Training:
    """A model and its optimizer; what is compiled is told by the cases below, before or after a guard is attached."""

    def __init__(self, backend):
        torch.compiler.reset()
        counters.clear()
        torch.manual_seed(0)
        self.model, self.graphs, self.memory = Net(), 0, Memory()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.forward, self.loss = self.model, F.cross_entropy
        self.make_step = self.optimizer.step

        def counted(graph, inputs):
            self.graphs += 1
            return lookup_backend(backend)(graph, inputs)

        self.compile = {"backend": counted}

    def backward(self):
        loss = self.loss(self.forward(X), Y)
        loss.backward()
        return loss

    def step(self):
        self.optimizer.zero_grad()
        loss = self.backward()
        self.make_step()
        return loss.detach()

    @property
    def compiled(self):
        """Graphs that were compiled, and breaks between them."""
        return self.graphs, sum(counters["graph_break"].values())


def the_model(t):
    t.forward = torch.compile(t.model, **t.compile)


def the_model_in_place(t):
    t.model.compile(**t.compile)


def a_part(t):
    t.model.body = torch.compile(t.model.body, **t.compile)


def a_part_in_place(t):
    t.model.body.compile(**t.compile)


def the_loss(t):
    t.loss = torch.compile(F.cross_entropy, **t.compile)


def forward_and_loss(t):
    together = torch.compile(lambda x, y: F.cross_entropy(t.model(x), y), **t.compile)
    t.forward, t.loss = lambda x: x, together


def forward_loss_and_backward(t):
    t.backward = torch.compile(t.backward, **t.compile)


def the_optimizers_step(t):
    t.make_step = torch.compile(t.optimizer.step, **t.compile)


def the_optimizers_step_in_a_function(t):
    t.make_step = torch.compile(lambda: t.optimizer.step(), **t.compile)


def the_whole_step(t):
    t.step = torch.compile(t.step, **t.compile)


class Case(NamedTuple):
    compile: Callable[[Training], None]
    measured: bool = True
    """Whether r can be measured with a backend that makes one backward of it."""
    alone: bool = True
    """Whether the guard is never on where compiled code runs, so that not even the first steps compile more."""


CASES = {
    "the model": Case(the_model),
    "the model, in place": Case(the_model_in_place),
    "a part of the model": Case(a_part),
    "a part of the model, in place": Case(a_part_in_place),
    "the optimizer's step": Case(the_optimizers_step, alone=False),  # broken in two at our hooks, at its first call
    "the optimizer's step in a function": Case(the_optimizers_step_in_a_function, alone=False),
    "the loss": Case(the_loss, measured=False, alone=False),
    "forward and loss": Case(forward_and_loss, measured=False, alone=False),
    "forward, loss and backward": Case(forward_loss_and_backward, measured=False, alone=False),
    "the whole step": Case(the_whole_step, measured=False, alone=False),
}
SETTINGS = {
    "observed, auto": {"action": "observe"},
    "observed, every": {"action": "observe", "cadence": "every"},
    "clamped, auto": {"target": 0.02},
    "clamped, every": {"target": 0.02, "cadence": "every"},
    "clamped where it never binds": {"target": 1e6},
}
QUICK = {("observed, auto", case) for case in CASES} | {("clamped, every", "the model"), ("clamped, auto", "the loss")}
EVERY = [
    pytest.param(case, setting, marks=[] if (setting, case) in QUICK else pytest.mark.slow)
    for case in CASES
    for setting in SETTINGS
]
STEPS, CALM = 34, 12
"""By the twelfth step each way of stepping has come once: the first, a watched one and one that is not."""


def run(what, backend, settings, first="attach"):
    """Losses, graphs and breaks after each step, and the training."""
    training = Training(backend)
    if first == "compile":
        what(training)
    guard = None
    if settings is not None:
        guard = stepguard.attach(training.model, training.optimizer, recorders=[training.memory], **settings)
    if first == "attach":
        what(training)
    losses, trail = [], []
    for _ in range(STEPS):
        losses.append(training.step())
        trail.append(training.compiled)
    if guard:
        guard.detach()
    torch.compiler.reset()
    return losses, trail, training


@pytest.mark.parametrize(("case", "settings"), EVERY)
def test_nothing_is_compiled_because_of_a_guard(case, settings):
    what, _, alone = CASES[case]
    plain, unguarded, twin = run(what, "eager", None)
    losses, trail, training = run(what, "eager", SETTINGS[settings])
    assert len(set(trail[CALM:])) == 1, Counter(trail)
    if alone:  # nothing in the warm-up either
        assert trail == unguarded, (Counter(trail), Counter(unguarded))
    assert [e.kind for e in training.memory.events if e.kind == "unmeasured"] == []
    scales = {r.scale == 1 for r in training.memory.readings}
    if "target" in SETTINGS[settings] and SETTINGS[settings]["target"] < 1:
        assert scales == {False}
    else:
        assert scales == {True} and all(map(torch.equal, plain, losses))
        for p, q in zip(training.model.parameters(), twin.model.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("first", ["attach", pytest.param("compile", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_one_backward_for_all_of_it(case, first):
    what, measured, alone = CASES[case]
    plain, unguarded, _ = run(what, "aot_eager", None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        losses, trail, training = run(what, "aot_eager", {"action": "observe"}, first)
    ours = [str(w.message) for w in said if "stepguard" in str(w.message)]
    assert all(map(torch.equal, plain, losses)) and len(set(trail[CALM:])) == 1
    if measured:
        assert not ours and len(training.memory.readings) >= 10 and (trail == unguarded or not alone)
    else:
        assert len(ours) == 1 and ("forward=" in ours[0] or "logits=" in ours[0])  # once, and what would help
        assert {e.kind for e in training.memory.events} == {"unmeasured"}


def test_r_of_a_compiled_model_is_that_of_a_plain_one():
    readings = []
    for what in (lambda t: None, the_model, the_model_in_place, a_part):
        _, _, training = run(what, "aot_eager", {"action": "observe", "cadence": "every"})
        readings.append([r.r for r in training.memory.readings])
    for other in readings[1:]:
        assert other == pytest.approx(readings[0], rel=1e-4) and len(other) == STEPS


@pytest.mark.parametrize("case", ["the model", "the model, in place", "a part of the model", "the optimizer's step"])
def test_beside_a_collapse_monitor(case):
    training = Training("eager")
    CASES[case].compile(training)
    model = training.forward if isinstance(training.forward, nn.Module) else training.model
    with (
        stepguard.attach(model, training.optimizer, recorders=[training.memory]),
        stepguard.monitor_collapse(model, training.optimizer, cadence=1, recorders=[training.memory]),
    ):
        trail = []
        for _ in range(STEPS):
            training.step()
            trail.append(training.compiled)
    torch.compiler.reset()
    assert len(set(trail[CALM:])) == 1 and len(training.memory.collapses) == STEPS
    assert [e for e in training.memory.events if e.kind == "unmeasured"] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("case", ["the model", "the model, in place", "a part of the model", "the optimizer's step"])
def test_with_inductor(case):
    what = CASES[case].compile
    plain, unguarded, _ = run(what, "inductor", None)
    losses, trail, training = run(what, "inductor", {"action": "observe"})
    assert trail == unguarded and all(map(torch.equal, plain, losses))
    assert len(training.memory.readings) >= 10 and not [e for e in training.memory.events if e.kind == "unmeasured"]
