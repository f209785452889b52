from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepguard.probe.random_state import device_of, random_state, set_random_state
from stepguard.probe.traces import no_traces


@contextmanager
def untouched(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Leave everything as it was found."""
    device = device_of(model)
    found = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    gradients = [(p, p.grad) for p in model.parameters()]
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    found += [(value, value.clone()) for group in groups for value in group.values() if isinstance(value, Tensor)]
    own = dict(vars(optimizer))
    drawn = random_state(device)
    parameters = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    with ExitStack() as stack:
        stack.enter_context(no_traces(model))
        try:
            # A scheduler counts steps, a guard of another kind looks at them; these are none.
            optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
            optimizer.state = copy.deepcopy(optimizer.state, dict(parameters))
            for p, _ in gradients:
                p.grad = None
            yield
        finally:
            vars(optimizer).clear()
            vars(optimizer).update(own)
            for group, kept in zip(optimizer.param_groups, groups, strict=True):
                group.update(kept)
            for p, gradient in gradients:
                p.grad = gradient
            with torch.no_grad():
                for tensor, value in found:
                    tensor.copy_(value)
            set_random_state(drawn, device)
