from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stepguard.guard.about import about
from stepguard.guard.collapse import CollapseMonitor
from stepguard.guard.collapse_settings import CollapseSettings, OnWarning
from stepguard.guard.guard import Guard
from stepguard.guard.outlook import Schedule
from stepguard.guard.policy import Action, BatchNorm, Cadence, ClampTo, Settings
from stepguard.guard.ranks import is_first
from stepguard.records import JsonLines, Recorder, TensorBoard

_TRAINERS = {"accelerate", "lightning", "pytorch_lightning"}


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    action: Action = "clamp",
    target: float = 1.0,
    cadence: Cadence = "auto",
    logits: Callable[[Any], Tensor] | None = None,
    forward: Callable[[nn.Module], Tensor] | None = None,
    quantile: float = 1.0,
    strict: bool = False,
    batch_norm: BatchNorm = "train",
    budget: float = 0.03,
    screen: bool | None = None,
    clamp_to: ClampTo = "calm",
    schedule: Schedule | None = None,
    log_dir: str | PathLike[str] | None = None,
    recorders: Sequence[Recorder] = (),
) -> Guard:
    r"""Guard every step of an optimizer, in any training loop, with the loop itself unchanged.

    At each ``optimizer.step()`` the update it really made, u, is measured on the batches that it came
    from (all whose loss a backward pass went through since the last step): :math:`r = \max_x \Delta_a(x) / \pi`
    with the slopes :math:`a = J_z u` taken at the parameters before the step (arXiv 2603.13552). z are the
    logits of every softmax or sigmoid cross-entropy in the loss, wherever the training code takes it; the
    most sensitive sample of any of them decides.

    Args:
        model: The module that is trained. It may be what the training code calls, or just hold that.
        optimizer: Any torch optimizer over this model's parameters.
        action: ``"observe"`` never changes a step; ``"clamp"`` multiplies the update by
            min(1, target / r); ``"drive"`` by target / r.
        target: Limit on r. 1 is the radius itself, smaller is more careful.
        cadence: ``"auto"`` looks at the length of every step, and measures those that may be near the limit and,
            now and then, another, to know what near is; ``"every"`` measures every step; a number k every k-th
            step only, which lets the steps between go unmeasured.
        logits: Function from the output of ``model`` to its logits ``[..., C]``, for a softmax that is not
            one of PyTorch's own; the loss is then not looked at.
        forward: Function from the model to logits ``[..., C]``, run instead of what training did,
            for instance ``lambda m: m(x)`` with a fixed x.
        quantile: Which quantile over the samples counts as the batch's r; 1 is the maximum.
        strict: Raise when a step cannot be measured, instead of warning once and going on.
        batch_norm: ``"train"`` measures normalisation layers that train with the batch's statistics, as
            training uses them; ``"eval"`` with their running averages, as the model will be evaluated.
        budget: Share of the time that training takes which measuring may cost with ``cadence="auto"``, as long as
            nothing is near the limit; there it costs what it costs.
        screen: Measure by one more forward pass, right to a few percent, and by forward mode only where r comes to
            0.9 of the target; None does so with ``cadence="auto"`` alone.
        clamp_to: How long a step is left that is beyond its target. ``"limit"``: up to the target. ``"calm"``: as
            long as if nothing had happened, and at most up to the target. Where a learning rate has risen to where
            it never was, that is the step at the usual rate; where the update is more than twice as long as usual at
            its rate, one of the usual length, which may grow again if it lasts. Usual is the median of the last 100
            steps; in the first thirty, and when parameters are thawed, nothing is. What is neither ends at the target.
        schedule: What sets the learning rate, to see further ahead when r will come to its target: the scheduler that
            is stepped after every optimizer step, or a function from that step to the rate. It is not touched.
        log_dir: Folder for TensorBoard's file and for ``stepguard.jsonl``, the records; None writes nothing.
        recorders: Further places to write to, for instance :class:`stepguard.records.Memory`.

    Returns:
        The guard; ``guard.detach()`` undoes it, and it is a context manager.

    Raises:
        ValueError: For a setting that makes no sense, an optimizer whose parameters are not the model's, or one that
            another guard changes the steps of.
        TypeError: If ``model`` is not a module or ``optimizer`` not a torch optimizer.
        OSError: If nothing can be written in ``log_dir``.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
        >>> with attach(model, optimizer) as guard:
        ...     loss = torch.nn.functional.cross_entropy(model(torch.eye(2)), torch.tensor([0, 1]))
        ...     loss.backward()
        ...     optimizer.step()
        >>> guard.last.r > 1, round(guard.last.r * guard.last.scale, 6)
        (True, 1.0)
    """
    engine = model
    model, optimizer = unwrapped(model, optimizer)
    settings = Settings(
        action, target, cadence, logits, forward, quantile, strict, batch_norm, budget, screen, clamp_to
    ).checked()
    check_owned(model, optimizer)
    schedule = _taken_off(schedule, "scheduler")
    places = _places(log_dir, recorders, about(model, optimizer, settings))
    return Guard(model, optimizer, settings, places, schedule=schedule, engine=engine)


def monitor_collapse(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    on_warning: OnWarning | None = None,
    cadence: Literal["auto"] | int = "auto",
    horizon: int = 500,
    headroom: float = 1.0,
    per_layer: bool = False,
    strict: bool = False,
    log_dir: str | PathLike[str] | None = None,
    recorders: Sequence[Recorder] = (),
) -> CollapseMonitor:
    r"""Watch for softmax collapse, in any training loop, with the loop itself unchanged.

    Softmax collapse (arXiv 2501.04697): logits grow until :math:`\sum_k e^{z_k - \max z}` is exactly 1 in floating
    point, and samples stop teaching. Now and then a step is looked at, on the logits that its loss really takes,
    in the dtype in which it takes its softmax, and on the gradients that the optimizer is given; nothing is run twice.

    Args:
        model: The module that is trained.
        optimizer: Any torch optimizer over this model's parameters.
        on_warning: What to do about it. None only tells; ``"perp_grad"`` removes from each gradient what is
            along the weights (:func:`stepguard.perp_grad_`) until there is headroom again; ``"stop"`` sets
            ``stop_reason``, for the loop to end.
        cadence: Steps from one reading to the next; ``"auto"`` finds how many keep readings below 2% of the time.
            As that depends on the machine, give a number where a cured run must be the same to the bit each time.
        horizon: A forecast of collapse within this many steps is a warning, where headroom is low already.
        headroom: Fewer nats than this for one sample in a hundred are a warning in any case.
        per_layer: Also tell how far the gradient of each parameter is along that parameter.
        strict: Raise when a step cannot be looked at, instead of warning once and going on.
        log_dir: Folder for TensorBoard's file and for ``stepguard.jsonl``, the records; None writes nothing.
        recorders: Further places to write to, for instance :class:`stepguard.records.Memory`.

    Returns:
        The monitor; ``monitor.detach()`` undoes it, and it is a context manager.

    Raises:
        ValueError: For a setting that makes no sense, or an optimizer whose parameters are not the model's.
        TypeError: If ``model`` is not a module or ``optimizer`` not a torch optimizer.
        OSError: If nothing can be written in ``log_dir``.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with monitor_collapse(model, optimizer) as monitor:
        ...     loss = torch.nn.functional.cross_entropy(model(torch.eye(2)), torch.tensor([0, 1]))
        ...     loss.backward()
        ...     optimizer.step()
        >>> monitor.last.collapse, monitor.last.headroom_nats > 10
        (0.0, True)
    """
    engine = model
    model, optimizer = unwrapped(model, optimizer)
    settings = CollapseSettings(on_warning, cadence, horizon, headroom, per_layer, strict).checked()
    check_owned(model, optimizer)
    places = _places(log_dir, recorders, about(model, optimizer, settings))
    return CollapseMonitor(model, optimizer, settings, places, engine=engine)


def unwrapped(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
    """What trainers and strategies have wrapped."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # The hooks belong on what a trainer wraps; other wrappers make steps of their own.
    optimizer = _taken_off(optimizer, "optimizer")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if not hasattr(optimizer, "param_groups"):
        name = type(optimizer).__name__
        raise TypeError(
            f"{name} has no param_groups, so what it moves is unknown; attach to the optimizer that it wraps"
        )
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if any(is_lazy(p) for p in model.parameters()):
        raise ValueError("the model has parameters without a shape yet; run it once on a batch before attaching")
    return model, optimizer


def _taken_off(wrapped: Any, inner: str) -> Any:
    """What is under this name in a trainer's wrapper; anything else as it is."""
    return getattr(wrapped, inner, wrapped) if type(wrapped).__module__.split(".")[0] in _TRAINERS else wrapped


def _places(log_dir: str | PathLike[str] | None, recorders: Sequence[Recorder], said: dict[str, Any]) -> list[Recorder]:
    if log_dir is None or not is_first():
        return list(recorders)
    # The lines first: a folder that cannot be written is refused here, before TensorBoard has a thread for it.
    return [JsonLines(log_dir, said), TensorBoard(log_dir), *recorders]


def check_owned(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse an optimizer that moves anything but the model's parameters.

    Raises:
        ValueError: Saying how many of its tensors are strangers, and what to try.
    """
    own = {id(p) for p in model.parameters()}
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    strangers = sum(id(p) not in own for p in moved)
    if strangers:
        raise ValueError(
            f"{strangers} of the optimizer's {len(moved)} tensors are not parameters of this "
            f"{type(model).__name__}. If the model was copied, rebuilt or moved by FSDP after the optimizer was made, "
            "make the optimizer again; if the optimizer also trains another module, attach to a module that holds both"
        )
