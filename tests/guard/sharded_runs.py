"""What each rank does in test_sharded: runs of models that fully_shard has spread over all of them."""

import itertools
import warnings

import torch
import torch.nn.functional as F
from reference import mlp
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import stepguard
from stepguard.records import Memory

STEPS = 4


class Bags(nn.Module):
    """Has no forward mode."""

    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.bag(x.abs().mul(3).long() % 12))


class Checkpointed(nn.Module):
    def __init__(self, again=True):
        super().__init__()
        self.body, self.head, self.again = nn.Linear(12, 16), nn.Linear(16, 5), again

    def hidden(self, x):
        return self.body(x).tanh()

    def forward(self, x):
        return self.head(checkpoint(self.hidden, x, use_reentrant=False) if self.again else self.hidden(x))


def batch(step, rank, size=4):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(size, 12, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def shard(model, **settings):
    for layer in list(model.children()):
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, **settings)
    return fully_shard(model, **settings)


def full(model):
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def train(model, rank, guard=None, loss=None, steps=STEPS, meddle=None, make=torch.optim.SGD, micro=1, lr=1.0):
    """Steps of a model; the parameters around each, the readings and the events."""
    optimizer = make(model.parameters(), lr=lr)
    memory, moves = Memory(), [full(model)]
    attached = stepguard.attach(model, optimizer, recorders=[memory], **guard) if guard else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a step that is not measured
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(micro):
                model.set_requires_gradient_sync(part == micro - 1)
                x, y = batch(step + 50 * part, rank)
                (loss(step, model, x, y) if loss else F.cross_entropy(model(x), y)).backward()
            if meddle:
                meddle(step, attached, optimizer)
            optimizer.step()
            moves.append(full(model))
    local = [part.to_local().clone() for part in model.parameters()]
    state = [s.to_local() if isinstance(s, DTensor) else s for e in optimizer.state.values() for s in e.values()]
    if attached:
        attached.detach()
    return {
        "moves": moves,
        "readings": memory.readings,
        "events": [(e.step, e.kind) for e in memory.events],
        "why": [e.message for e in memory.events if e.kind == "unmeasured"],
        "end": local + [s for s in state if isinstance(s, torch.Tensor)],
    }


CLAMP = {"target": 0.05, "cadence": "every"}
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
WAYS = {
    "every layer by itself": lambda: shard(mlp()),
    "the whole as one": lambda: fully_shard(mlp()),
    "left whole after the forward": lambda: shard(mlp(), reshard_after_forward=False),
    "dropout": lambda: shard(mlp(0.5)),
    "no forward mode": lambda: shard(Bags()),
    "activations made again": lambda: shard(Checkpointed()),
    "computing in bfloat16": lambda: shard(mlp(), mp_policy=HALF),
    "copies of shards": lambda: shard(
        mlp(), mesh=init_device_mesh("cpu", (distributed.get_world_size() // 2, 2), mesh_dim_names=("copy", "shard"))
    ),
}


def made(make):
    torch.manual_seed(0)
    return make()


def the_ways(rank):
    found = {name: train(made(make), rank, CLAMP) for name, make in WAYS.items()}
    found["accumulated"] = train(made(WAYS["every layer by itself"]), rank, CLAMP, micro=2)
    found["screened"] = train(made(WAYS["every layer by itself"]), rank, {"screen": True, "cadence": "every"}, lr=0.1)
    return found


def the_looks(rank):
    """Of each way without a guard and with one that only looks."""
    found = {}
    for name, make in WAYS.items():
        adam = {"make": torch.optim.Adam, "lr": 0.1}
        alone = train(made(make), rank, **adam)
        found[name] = alone, train(made(make), rank, {"action": "observe", "cadence": "auto"}, **adam)
    return found


def breaks(thing, name, error, after=0):
    """The method of this one thing raises once, after so many calls."""
    calls, method = itertools.count(), getattr(thing, name)

    def broken(*args):
        if next(calls) == after:
            raise error
        return method(*args)

    setattr(thing, name, broken)


def fails_at(after, error):
    """The forward of the last rank fails when it is run again."""

    def made(rank):
        def meddle(step, guard, optimizer):
            if step == 1 and rank == distributed.get_world_size() - 1:
                breaks(guard._probe._model[0], "forward", error, after)

        return meddle

    return made


def loses_its_batch(rank):
    return lambda step, guard, optimizer: guard._probe.take() if step == 1 and rank == 0 else None


def breaks_as_the_step_begins(rank):
    def meddle(step, guard, optimizer):
        if step == 1 and rank == 0:
            breaks(guard._change._movement, "begin", RuntimeError("broken"))

    return meddle


def spoils_one_shard(rank):
    def meddle(step, guard, optimizer):
        if step == 1 and rank == 0:
            optimizer.param_groups[0]["params"][0].grad.to_local()[0] = float("nan")

    return meddle


def another_loss(step, model, x, y):
    """On the first rank one without a softmax, at one step."""
    if step == 1 and distributed.get_rank() == 0:
        return 0 * model(x).sum()
    return F.cross_entropy(model(x), y)


MISHAPS = {
    "a forward that fails at once": fails_at(0, RuntimeError("broken")),
    "a forward that fails at its second run": fails_at(1, RuntimeError("broken")),
    "out of memory": fails_at(0, torch.OutOfMemoryError("simulated")),
    "as the step begins": breaks_as_the_step_begins,
}


def the_mishaps(rank):
    def run(**settings):
        return train(made(WAYS["every layer by itself"]), rank, CLAMP, **settings)

    found = {name: run(meddle=make(rank)) for name, make in MISHAPS.items()}
    found["no batch"] = run(meddle=loses_its_batch(rank))
    found["no softmax"] = run(loss=another_loss)
    found["nan in a shard"] = run(meddle=spoils_one_shard(rank), make=torch.optim.Adam)
    return found


def the_refused(rank):
    found = {}
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    tensors = parallelize_module(mlp(), mesh, {"0": ColwiseParallel()})
    for name, model in {"tensors": tensors, "legacy": FullyShardedDataParallel(mlp(), device_id="cpu")}.items():
        try:
            stepguard.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        except ValueError as error:
            found[name] = str(error)
    return found


def collapse(rank):
    model, memory = made(WAYS["every layer by itself"]), Memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepguard.monitor_collapse(model, optimizer, cadence=1, on_warning="perp_grad", recorders=[memory]):
        for step in range(STEPS):
            x, y = batch(step, rank)
            optimizer.zero_grad()
            F.cross_entropy(model(x) + 9 * step * F.one_hot(y, 5), y).backward()
            optimizer.step()
    return full(model), memory.collapses, [(e.step, e.kind) for e in memory.events]


def suggested(rank):
    found = []
    for make in (WAYS["every layer by itself"], lambda: DistributedDataParallel(mlp())):
        model = made(make)
        batches = [batch(step, rank) for step in range(3)]
        found.append(tuple(stepguard.suggest_lr(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches)))
    return found


def everything(rank, folder):
    return {
        "suggested": suggested(rank),
        "ways": the_ways(rank),
        "looks": the_looks(rank),
        "mishaps": the_mishaps(rank),
        "refused": the_refused(rank),
        "collapse": collapse(rank),
    }
