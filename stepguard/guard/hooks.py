from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def hook_step(
    optimizer: Optimizer, begin: Callable[[bool], None], end: Callable[[], None]
) -> tuple[RemovableHandle, ...]:
    """Call ``begin`` when gradients are there and nothing has moved, ``end`` when the step is made.

    With a closure (Lightning, LBFGS) the forward and backward passes run inside ``step``, so the
    closure is wrapped and ``begin`` fires after its first run; without one it fires at once. It is told
    whether the optimizer has moved parameters before it ran the closure, as SAM does.
    """

    def before(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            begin(False)
            return None
        ran, versions = False, _versions(optimizer)

        def closure_then_begin() -> Any:
            nonlocal ran
            first, ran = not ran, True
            moved = first and versions != _versions(optimizer)
            loss = closure()
            if first:
                begin(moved)
            return loss

        if len(args) > 1:
            return (args[0], closure_then_begin, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_begin}

    def after(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        end()

    before.owner = getattr(begin, "__self__", None)  # type: ignore[attr-defined]
    return optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)


def owners(optimizer: Optimizer) -> list[object]:
    """Whose hooks are on an optimizer: its guards and monitors."""
    found = [getattr(hook, "owner", None) for hook in optimizer._optimizer_step_pre_hooks.values()]
    return [owner for owner in found if owner is not None]


def _versions(optimizer: Optimizer) -> list[int]:
    return [p._version for group in optimizer.param_groups for p in group["params"]]
