from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

Forward = Callable[[dict[str, Tensor]], Tensor]


@functools.cache
def load_forward_mode() -> None:
    """Have PyTorch load its forward-mode rules now: it does so at first use, slowly and with a deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


def logit_slopes(forward: Forward, params: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> Tensor:
    r"""How fast each logit moves along a whole update: the Jacobian-vector product :math:`a = J_z u`.

    One forward pass in forward mode; no graph is built and no gradient is touched (Ghosts of
    Softmax, arXiv 2603.13552: the directional derivatives :math:`a_k`).

    Args:
        forward: Maps named parameters to logits, for instance through
            :func:`torch.func.functional_call`.
        params: The parameters at which to differentiate.
        update: Proposed change of the parameters; names left out do not move.

    Returns:
        Slopes in logits per whole update, shaped like the logits.

    Raises:
        KeyError: If the update names an unknown parameter.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> w = torch.zeros(3, 2)
        >>> logit_slopes(lambda p: x @ p["w"].T, {"w": w}, {"w": torch.tensor([[1.0, 0], [0, 1], [0, 0]])})
        tensor([[1., 2., 0.]])
    """
    unknown = update.keys() - params.keys()
    if unknown:
        raise KeyError(f"the update moves {sorted(unknown)}, which params does not have")
    load_forward_mode()
    with torch.no_grad(), forward_ad.dual_level():
        inputs = {
            name: forward_ad.make_dual(value.detach(), update[name].to(value.dtype)) if name in update else value
            for name, value in params.items()
        }
        logits, slopes = forward_ad.unpack_dual(forward(inputs))
    # No tangent means that nothing on the path to the logits moved.
    return torch.zeros_like(logits) if slopes is None else slopes
