# shape suffixes: L = queries, S = keys, D = width of a head (any leading dimensions)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST_SCORES = 1 << 20
"""Scores that are held at once: 4 MiB of them."""


class SlicedAttention(TorchFunctionMode):
    """Scaled dot-product attention a few queries at a time.

    Forward mode needs kernels that write the scores down, ``[L, S]`` for each head and sample, which training's own
    never do. Of a slice of the queries they are few, and behind a causal mask half of them need not be made.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            return attention(function, *args, **kwargs)
        return function(*args, **kwargs)


def attention(
    function: Callable[..., Tensor],
    query_LD: Tensor,
    key_SD: Tensor,
    value_SD: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **how: Any,
) -> Tensor:
    """The same as ``function``, which is PyTorch's own, called for some of the queries at a time."""
    queries, keys = query_LD.shape[-2], key_SD.shape[-2]
    heads = query_LD[..., 0, 0].numel()
    size = max(_MOST_SCORES // max(heads * keys, 1), 1)
    # What is dropped is drawn for all queries at once; a mask beside a causal one is PyTorch's error to raise.
    if size >= queries or dropout_p or query_LD.is_nested or (is_causal and attn_mask is not None):
        return function(query_LD, key_SD, value_SD, attn_mask, dropout_p, is_causal, **how)
    made = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        seen, mask = keys, attn_mask
        if is_causal:
            seen = min(stop, keys)
            mask = torch.ones(stop - start, seen, dtype=torch.bool, device=query_LD.device).tril(start)
        elif attn_mask is not None and attn_mask.shape[-2] != 1:
            mask = attn_mask[..., start:stop, :]
        made.append(function(query_LD[..., start:stop, :], key_SD[..., :seen, :], value_SD[..., :seen, :], mask, **how))
    return torch.cat(made, dim=-2)
