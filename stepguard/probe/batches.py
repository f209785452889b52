from __future__ import annotations

from collections.abc import Iterable

from stepguard.probe.outline import FunctionCall, Held, ModuleCall, Picked, Reached, Ref, SoftmaxCall, Step, upstream
from stepguard.probe.rerun import Target
from stepguard.probe.softmax import GATES, LOG_SOFTMAXES, LOGARITHMS, argument
from stepguard.probe.wide_head import REARRANGING


def batches(reached: Iterable[Reached]) -> list[list[Target]]:
    """Where the loss of a step has its logits; those that come of the same forward together.

    First the softmaxes that it was seen to take. Then the modules with an output that a gradient reached
    by another way than through one of those: their loss is computed inside, where the replay looks for it.
    """
    reached = list(reached)
    taken = [r for r in reached if isinstance(r, SoftmaxCall)]
    calls = {s.call for s in taken if isinstance(s.call, FunctionCall)}
    # A softmax on its own may be anything, unless its logarithm is taken; and nll_loss takes none of its own.
    _name_labels(taken)
    logged = {c for call in calls if call.name in LOGARITHMS for c in _functions_before(call)}
    targets: list[Target] = [s for s in taken if _is_loss(s.call, logged)]
    targets += [r for r in reached if isinstance(r, Picked)]
    explained = upstream(ref for target in targets for ref in _inputs(target))
    outputs = {r for r in reached if isinstance(r, Ref)} - explained
    earlier = upstream(ref for output in outputs for ref in output.node.inputs)
    nodes = {output.node for output in outputs - earlier}
    targets += [node for node in sorted(nodes, key=lambda n: n.order) if isinstance(node, ModuleCall)]
    return _together(targets)


def starts_early(reached: Iterable[Reached]) -> bool:
    """Whether a step does something with parameters that matters before it calls its first module under grad."""
    nodes = _made_for(reached)
    first = min((n.order for n in nodes if isinstance(n, ModuleCall) and n.under_grad), default=None)
    return first is None or any(n.order < first for n in nodes)


def modules_called(reached: Iterable[Reached]) -> set[ModuleCall]:
    """The calls of modules that led there."""
    return {node for node in _made_for(reached) if isinstance(node, ModuleCall)}


def _made_for(reached: Iterable[Reached]) -> set[Step]:
    return {ref.node for r in reached for ref in upstream(_inputs(r))}


def _is_loss(call: FunctionCall | Exception, logged: set[FunctionCall]) -> bool:
    if not isinstance(call, FunctionCall):
        return True  # it must be told that it cannot be measured
    if call.name == "nll_loss":
        return not _is_told_before(call)
    if call.name in LOGARITHMS:  # it may be a module that took the softmax
        return not any(c.name in GATES for c in _functions_before(call)) and bool(call.inputs)
    return call.name not in GATES or call in logged


def _is_told_before(call: FunctionCall) -> bool:
    """Whether one softmax alone has made what comes in, so that this adds nothing to it."""
    node: Step = call
    while len(node.inputs) == 1 and isinstance(node := node.inputs[0].node, FunctionCall):
        if node.name in GATES | LOG_SOFTMAXES:
            return True
        if node.name not in REARRANGING | LOGARITHMS:
            return False
    return False


def _name_labels(taken: list[SoftmaxCall]) -> None:
    """Tell a log_softmax what the nll_loss behind it takes for labels."""
    by_call = {s.call: s for s in taken}
    for call in by_call:
        if isinstance(call, FunctionCall) and call.name == "nll_loss" and len(call.inputs) == 1:
            source = by_call.get(call.inputs[0].node)  # type: ignore[call-overload]
            target = argument(call.args, call.kwargs, 1, "target")
            if source is not None and isinstance(target, Held):
                source.labels = target.tensor


def _functions_before(call: Step) -> set[FunctionCall]:
    """The functions that led to a call since the last module."""
    found: set[FunctionCall] = set()
    todo = [ref.node for ref in call.inputs]
    while todo:
        node = todo.pop()
        if isinstance(node, FunctionCall) and node not in found:
            found.add(node)
            todo += [ref.node for ref in node.inputs]
    return found


def _inputs(target: Target | Reached) -> list[Ref]:
    if isinstance(target, Ref):
        return [target]
    call = target if isinstance(target, ModuleCall) else getattr(target, "call", None)
    return call.inputs if isinstance(call, Step) else []


def _together(targets: list[Target]) -> list[list[Target]]:
    groups: list[tuple[set[Step], list[Target]]] = []
    for target in targets:
        steps = {ref.node for ref in upstream(_inputs(target))}
        steps = {s for s in steps if isinstance(s, ModuleCall)} | (
            {target} if isinstance(target, ModuleCall) else set()
        )
        members = [target]
        apart = []
        for others, found in groups:
            if others & steps:
                steps, members = steps | others, found + members
            else:
                apart.append((others, found))
        groups = [*apart, (steps, members)]
    return [members for _, members in groups]
