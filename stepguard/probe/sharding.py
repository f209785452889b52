from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Slot = tuple[nn.Module, str]
"""A module, and the name by which it holds a parameter."""


class Unit(NamedTuple):
    """A module that ``fully_shard`` was applied to, with what it gathers for its forward."""

    module: nn.Module
    slots: dict[Tensor, list[Slot]]
    """Its parameters, as this rank holds them: in shards."""
    computes_in: torch.dtype | None
    """The dtype in which it does; None is that of its parameters."""
    casts_inputs: bool
    gives: torch.dtype | None
    """The dtype of what it returns, where that is not left as it is."""


class Layout(NamedTuple):
    """How a parameter lies over the ranks: in chunks along one dimension, the last of them smaller or empty."""

    dim: int
    ranks: int
    group: Any

    @classmethod
    def of(cls, parameter: Any) -> Layout:
        """That of a DTensor of one sharded dimension, over all ranks of a mesh or over those of each copy."""
        ((over, placed),) = [(i, p) for i, p in enumerate(parameter.placements) if p.is_shard()]
        mesh = parameter.device_mesh
        return cls(placed.dim, mesh.size(over), mesh.get_group(over))

    def shape(self, whole: torch.Size, rank: int) -> list[int]:
        """Of the part that a rank has."""
        length, chunk = whole[self.dim], -(-whole[self.dim] // self.ranks)
        return [*whole[: self.dim], max(min(chunk, length - rank * chunk), 0), *whole[self.dim + 1 :]]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, recognised without loading where it is from."""
    return hasattr(tensor, "to_local")


def part_here(tensor: Any) -> Tensor:
    """What this rank has of a tensor, in its own memory; to be called without gradients."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def copies(tensor: Any, ranks: int) -> int:
    """How many ranks have the same part of a tensor as this one."""
    if not is_sharded(tensor):
        return ranks
    mesh = tensor.device_mesh
    found = 1
    for dim, placed in enumerate(tensor.placements):
        found *= 1 if placed.is_shard() else mesh.size(dim)
    return found


def units_of(model: nn.Module) -> list[Unit]:
    """The units of a model, in the order of its modules, the same on all ranks."""
    return [_unit(module) for module in model.modules() if _is_unit(module)]


def check_sharding(model: nn.Module, ranks: int) -> None:
    """Refuse ways of sharding that cannot be measured.

    Raises:
        ValueError: Saying which, and what to use instead.
    """
    legacy = sys.modules.get("torch.distributed.fsdp.fully_sharded_data_parallel")
    if legacy and any(isinstance(m, legacy.FullyShardedDataParallel) for m in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel hides its parameters in flat ones. Use fully_shard of torch.distributed.fsdp "
            "(in Lightning ModelParallelStrategy, in accelerate fsdp_version=2), which replaces it"
        )
    gathered = {p for unit in units_of(model) for p in unit.slots}
    for name, p in model.named_parameters():
        if is_sharded(p) and not (p in gathered and _is_plain(p, ranks)):
            raise ValueError(
                f"{name} is sharded as {p.placements} over a mesh of {p.device_mesh.size()} of {ranks} ranks. Only "  # type: ignore[attr-defined]
                "what fully_shard makes of whole parameters, over all ranks, can be measured: no tensor or pipeline "
                "parallelism"
            )


def from_fsdp(hook: Any) -> bool:
    """Whether a module hook is one by which FSDP gathers parameters."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp")


def _is_plain(parameter: Any, ranks: int) -> bool:
    mesh, placements = parameter.device_mesh, parameter.placements
    # Only exactly Shard: a strided one is the work of several kinds of parallelism.
    shards = [p for p in placements if type(p).__name__ == "Shard"]
    copied = [p for p in placements if p.is_replicate()]
    return mesh.size() == ranks and len(shards) == 1 and len(shards) + len(copied) == len(placements)


def _is_unit(module: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _unit(module: nn.Module) -> Unit:
    slots: dict[Tensor, list[Slot]] = {}
    todo = [module]
    while todo:
        inner = todo.pop()
        for name, p in inner._parameters.items():
            if p is not None and is_sharded(p):
                slots.setdefault(p, []).append((inner, name))
        todo += [child for child in inner.children() if not _is_unit(child)]
    policy = getattr(module._get_fsdp_state(), "_mp_policy", None)  # type: ignore[operator]
    return Unit(
        module,
        slots,
        getattr(policy, "param_dtype", None),
        getattr(policy, "cast_forward_inputs", False),
        getattr(policy, "output_dtype", None),
    )
