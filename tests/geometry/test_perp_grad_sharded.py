"""Sharded parameters are taken whole, with two gloo processes."""

import torch
import torch.nn.functional as F
from processes import run_on_ranks
from reference import mlp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from stepguard import nlm_alignment, perp_grad_
from stepguard.geometry import nlm_alignments

CHOICES = [{"over": over, "restore_norm": restore_norm} for over in ("tensor", "all") for restore_norm in (True, False)]
SHAPES = [(8, 3), (5, 3), (1, 7), (6,), (4, 4)]
PLACED = [Shard(0), Shard(0), Shard(0), Replicate(), Shard(1)]


def whole():
    torch.manual_seed(0)
    made = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def sharded(mesh, rank):
    made = []
    for p, placed in zip(whole(), PLACED, strict=True):
        q = nn.Parameter(distribute_tensor(p.detach(), mesh, [placed]))
        if p.ndim == 1:  # summed up by nobody yet
            q.grad = DTensor.from_local(p.grad if rank == 0 else torch.zeros_like(p.grad), mesh, [Partial()])
        else:
            q.grad = distribute_tensor(p.grad, mesh, [placed])
        made.append(q)
    return made


def in_parts(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for choice in CHOICES:
        given = sharded(mesh, rank)
        cosine, cosines = nlm_alignment(given), nlm_alignments(given)
        perp_grad_(given, **choice)
        found.append([cosine, cosines, *(p.grad.full_tensor() for p in given)])
    return found


def test_as_if_they_were_whole(tmp_path):
    for found in run_on_ranks(in_parts, tmp_path):
        for choice, (cosine, cosines, *gradients) in zip(CHOICES, found, strict=True):
            given = whole()
            torch.testing.assert_close(cosine, nlm_alignment(given))
            torch.testing.assert_close(cosines, nlm_alignments(given))
            perp_grad_(given, **choice)
            torch.testing.assert_close(gradients, [p.grad for p in given], rtol=1e-5, atol=1e-6)


def fsdp(rank, folder):
    torch.manual_seed(0)
    model = mlp()
    for layer in (model[0], model[3]):
        fully_shard(layer)
    fully_shard(model)
    torch.manual_seed(1)
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    F.cross_entropy(model(x[rank::2]), y[rank::2]).backward()
    perp_grad_(model.parameters())
    return [p.grad.full_tensor() for p in model.parameters()]


def test_fully_shard(tmp_path):
    torch.manual_seed(0)
    model = mlp()
    torch.manual_seed(1)
    x, y = torch.randn(8, 12), torch.randint(0, 5, (8,))
    F.cross_entropy(model(x), y).backward()
    perp_grad_(model.parameters())
    for found in run_on_ranks(fsdp, tmp_path):
        torch.testing.assert_close(found, [p.grad for p in model.parameters()], rtol=1e-5, atol=1e-6)
