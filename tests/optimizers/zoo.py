"""Every optimizer: how it is made and stepped, and what is expected of it under a guard."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_optimizer as po
import torch
from optimizers.training import (
    Advance,
    SparseRows,
    backward_then_closure,
    in_backward,
    loss_as_closure,
    plain,
    set_closure,
    two_tasks,
    with_closure,
    with_graph,
)
from reference import mlp
from torch import nn, optim


class Case(NamedTuple):
    """An optimizer."""

    make: Callable[[nn.Module], Any]
    advance: Advance = plain
    build: Callable[[], nn.Module] = mlp
    rebound: float = 1.5
    """How many times what an unspiked run asks for it may ask for, at the step after a spike."""
    lasts: int = 5
    """For how many steps after it more than three times that."""
    says: str = ""
    """What attach must say of it."""
    measured: bool = True
    late: int = 0
    """Steps until a learning rate takes effect."""
    worse: float = 0.1
    """How much more loss than the unspiked run's it may end with."""
    note: str = ""


def of(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(model.parameters(), **settings)


def of_model(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(model, **settings)


def of_matrices(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind([p for p in model.parameters() if p.ndim == 2], **settings)


def of_both(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    """One that does something else with what is not a matrix."""

    def make(model: nn.Module) -> Any:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "use_muon": True, "lr": 0.01}, {"params": others, "use_muon": False, "lr": 1e-3}]
        return kind(groups, **settings)

    return make


def around_adamw(kind: Any, **settings: Any) -> Callable[[nn.Module], Any]:
    return lambda model: kind(optim.AdamW(model.parameters(), lr=2e-3), **settings)


def training(make: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
    """One that has a mode, as schedule-free ones do."""

    def made(model: nn.Module) -> Any:
        optimizer = make(model)
        optimizer.train()
        return optimizer

    return made


def gsam(model: nn.Module) -> Any:
    base = optim.SGD(model.parameters(), lr=0.05)
    rates = po.CosineScheduler(base, t_max=100, max_lr=0.05, min_lr=0.05)
    rho = po.ProportionScheduler(rates, max_lr=0.05, min_lr=0.0, max_value=0.1, min_value=0.1)
    return po.GSAM(model.parameters(), base, model, rho)


def groups(model: nn.Module) -> Any:
    first, *others = model.parameters()
    return optim.Adam([{"params": [first], "lr": 4e-3}, {"params": others}], lr=2e-3)


SAM = {"measured": False, "says": "a step that does so is not measured. Attach to its base_optimizer"}
LOMO = {"measured": False, "says": "moves the parameters during backward"}
ANEW = "begins anew after a clamp, as at its first step"
ALONG = "what it keeps goes along"
OWN_RATE = "sets its own rate, so a spike of lr changes little"

TORCH = {
    "SGD": Case(of(optim.SGD, lr=0.05)),
    "SGD, momentum and decay": Case(of(optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)),
    "SGD, nesterov": Case(of(optim.SGD, lr=0.05, momentum=0.9, nesterov=True)),
    "Adam": Case(of(optim.Adam, lr=2e-3)),
    "Adam, amsgrad": Case(of(optim.Adam, lr=2e-3, amsgrad=True)),
    "Adam, foreach": Case(of(optim.Adam, lr=2e-3, foreach=True)),
    "Adam, fused": Case(of(optim.Adam, lr=2e-3, fused=True)),
    "Adam, learning rate in a tensor": Case(of(optim.Adam, lr=torch.tensor(2e-3))),
    "Adam, two groups": Case(groups),
    "AdamW": Case(of(optim.AdamW, lr=2e-3)),
    "NAdam": Case(of(optim.NAdam, lr=2e-3)),
    "RAdam": Case(of(optim.RAdam, lr=2e-3)),
    "Adamax": Case(of(optim.Adamax, lr=2e-3)),
    "RMSprop": Case(of(optim.RMSprop, lr=1e-3)),
    "RMSprop, centered, momentum": Case(of(optim.RMSprop, lr=1e-3, momentum=0.9, centered=True)),
    "Rprop": Case(of(optim.Rprop, lr=1e-3), note="lr is only where its steps begin"),
    "Adagrad": Case(of(optim.Adagrad, lr=0.02)),
    "Adadelta": Case(of(optim.Adadelta, lr=0.5)),
    "ASGD": Case(
        of(optim.ASGD, lr=0.05, t0=10), late=1, note="a rate takes effect one step late; its average goes along"
    ),
    "Adafactor": Case(of(optim.Adafactor, lr=0.01)),
    "SparseAdam": Case(lambda model: optim.SparseAdam(model.rows.parameters(), lr=0.02), build=SparseRows),
    "LBFGS": Case(of(optim.LBFGS, lr=0.1, max_iter=4, history_size=5), with_closure, rebound=10, note=ANEW),
    "LBFGS, one iteration": Case(
        of(optim.LBFGS, lr=0.5, max_iter=1, history_size=5), with_closure, rebound=20, note=ANEW
    ),
    "Muon": Case(of_matrices(optim.Muon, lr=0.01)),
}
WELL_KNOWN = {
    "Lion": Case(of(po.Lion, lr=1e-3)),
    "LAMB": Case(of(po.Lamb, lr=2e-3)),
    "LARS": Case(of(po.LARS, lr=0.05)),
    "SOAP": Case(of(po.SOAP, lr=2e-3)),
    "Shampoo": Case(of(po.Shampoo, lr=0.02)),
    "ScalableShampoo": Case(of(po.ScalableShampoo, lr=2e-3)),
    "Prodigy": Case(of(po.Prodigy), worse=0.3),
    "DAdaptSGD": Case(of(po.DAdaptSGD, d0=1e-2), rebound=5, says="the longest way", note=ALONG),
    "DAdaptAdam": Case(of(po.DAdaptAdam, lr=0.2, d0=1e-3), rebound=3, note=ALONG),
    "DAdaptAdaGrad": Case(of(po.DAdaptAdaGrad, d0=1e-2), rebound=5, says="the longest way", note=ALONG),
    "DAdaptAdan": Case(of(po.DAdaptAdan, lr=0.2, d0=1e-3), rebound=3, worse=1.0, note=ALONG),
    "DAdaptLion": Case(of(po.DAdaptLion, lr=0.2, d0=1e-3), note=ALONG),
    "schedule-free SGD": Case(training(of(po.ScheduleFreeSGD, lr=0.2)), rebound=2, note=ALONG),
    "schedule-free AdamW": Case(training(of(po.ScheduleFreeAdamW, lr=0.01)), note=ALONG),
    "schedule-free RAdam": Case(training(of(po.ScheduleFreeRAdam, lr=0.01)), note=ALONG),
    "ScheduleFreeWrapper": Case(training(around_adamw(po.ScheduleFreeWrapper)), rebound=3.5, note=ALONG),
    "MADGRAD": Case(of(po.MADGRAD, lr=2e-3), rebound=15, says="what it has summed up", note=ALONG),
    "SAM": Case(of(po.SAM, base_optimizer=optim.SGD, lr=0.05), backward_then_closure, **SAM),
    "GSAM": Case(gsam, set_closure, **SAM),
    "LookSAM": Case(of(po.LookSAM, base_optimizer=optim.SGD, lr=0.05), backward_then_closure, **SAM),
    "FriendlySAM": Case(of(po.FriendlySAM, base_optimizer=optim.SGD, lr=0.05), backward_then_closure, **SAM),
    "BSAM": Case(of(po.BSAM, num_data=1000, lr=0.05), backward_then_closure, **SAM),
    "WSAM": Case(lambda model: po.WSAM(model, model.parameters(), optim.SGD, lr=0.05), with_closure),
    "Lookahead": Case(around_adamw(po.Lookahead), note=ALONG),
    "OrthoGrad": Case(around_adamw(po.OrthoGrad)),
    "PCGrad": Case(around_adamw(po.PCGrad), two_tasks),
    "TRAC": Case(around_adamw(po.TRAC, s_prev=1.0), worse=2.0, says="from where training began"),
    "AdaBelief": Case(of(po.AdaBelief, lr=2e-3)),
    "AdaFactor": Case(
        of(po.AdaFactor, lr=2e-3, relative_step=False, scale_parameter=False),
        rebound=10,
        says="in its momentum",
        note=ALONG,
    ),
    "AdaFactor, relative steps": Case(of(po.AdaFactor, lr=None), says="in its momentum", note=OWN_RATE),
    "Adan": Case(of(po.Adan, lr=2e-3)),
    "SophiaH": Case(of(po.SophiaH, lr=2e-3), with_graph),
    "AdaHessian": Case(of(po.AdaHessian, lr=0.02), with_graph),
    "CAME": Case(of(po.CAME, lr=2e-4)),
    "GaLore": Case(of(po.GaLore, lr=2e-3)),
    "Muon, pytorch_optimizer's": Case(of_both(po.Muon)),
    "MARS": Case(of(po.MARS, lr=2e-3)),
    "AdEMAMix": Case(of(po.AdEMAMix, lr=2e-3)),
    "StableAdamW": Case(of(po.StableAdamW, lr=2e-3)),
    "Grams": Case(of(po.Grams, lr=2e-3)),
    "Apollo": Case(of(po.APOLLO, lr=2e-3)),
    "Ranger": Case(of(po.Ranger, lr=2e-3), note=ALONG),
    "Ranger21": Case(of(po.Ranger21, num_iterations=200, lr=2e-3), note=ALONG),
    "LOMO": Case(of_model(po.LOMO, lr=0.02), in_backward, **LOMO),
    "AdaLOMO": Case(of_model(po.AdaLOMO, lr=0.02), in_backward, **LOMO),
}
_SPECIAL = {
    "A2Grad": Case(of(po.A2Grad), note=OWN_RATE),
    "AccSGD": Case(of(po.AccSGD, lr=0.02), note="its momentum, which has the rate in it, goes along"),
    "AdaGO": Case(of_both(po.AdaGO)),
    "AdaMod": Case(of(po.AdaMod, lr=2e-2), rebound=15, says="how long its steps have been"),
    "AdaMuon": Case(of_both(po.AdaMuon)),
    "AdamMini": Case(of_model(po.AdamMini, lr=2e-3)),
    "AliG": Case(of(po.AliG, max_lr=0.05), loss_as_closure, note=OWN_RATE),
    "ApolloDQN": Case(of(po.ApolloDQN, lr=2e-3), note=OWN_RATE),
    "AdaSmooth": Case(of(po.AdaSmooth, lr=2e-3), rebound=2),
    "FTRL": Case(of(po.FTRL, lr=2e-3), rebound=150, says="finds the parameters anew"),
    "Kate": Case(of(po.Kate, lr=1e-5)),
    "LaProp": Case(of(po.LaProp, lr=2e-3), rebound=3, note="its momentum has the rate in it"),
    "MuonClip": Case(of_both(po.MuonClip), note="calls the step of its base class: measured once"),
    "ASGD": Case(
        of(po.ASGD, lr=2e-2), rebound=5, lasts=18, note="takes its own rate from the one that it was last given"
    ),
    "Nero": Case(of(po.Nero, lr=2e-3), rebound=200, says="on its constraints"),
    "NorMuon": Case(of_both(po.NorMuon)),
    "SpectralSphere": Case(of_matrices(po.SpectralSphere)),
    "SPlus": Case(of(po.SPlus, lr=2e-3), note=ALONG),
    "SRMM": Case(of(po.SRMM, lr=2e-3), note=ALONG),
}
LEFT_OUT = {
    "DeMo": "needs another package",
    "DistributedMuon": "needs several processes; Muon's step otherwise",
    "SafeFP16Optimizer": "has no param_groups, so attach refuses it",
}


def classes(module: Any) -> dict[str, type]:
    """The optimizers of a package, by name."""
    found = {name: getattr(module, name) for name in dir(module)}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
    }


def _others() -> dict[str, Case]:
    """The rest of pytorch_optimizer, which take the usual arguments."""
    made = {type(case.make(case.build())) for case in (*TORCH.values(), *WELL_KNOWN.values())}
    rest = {name for name, kind in classes(po).items() if kind not in made} - set(LEFT_OUT)
    cases = {name: _SPECIAL.get(name) or Case(of(getattr(po, name), lr=2e-3)) for name in sorted(rest)}
    return {f"{name}, pytorch_optimizer's" if name in TORCH else name: case for name, case in cases.items()}


OTHERS = _others()
SECTIONS = {"torch.optim": TORCH, "Well-known ones": WELL_KNOWN, "The rest of pytorch_optimizer": OTHERS}
CASES = {**TORCH, **WELL_KNOWN, **OTHERS}
