"""Attention a few queries at a time: the same numbers and slopes as PyTorch's own, with few scores at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from benchmarks.memory_use import peak_bytes
from stepguard.probe import attention
from stepguard.probe.attention import SlicedAttention
from stepguard.probe.kernels import differentiable
from stepguard.probe.slopes import load_forward_mode

load_forward_mode()


def some(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


CASES = {
    "plain": ((2, 3, 20, 8), (2, 3, 20, 8), {}),
    "causal": ((2, 3, 20, 8), (2, 3, 20, 8), {"is_causal": True}),
    "causal, more keys": ((2, 3, 12, 8), (2, 3, 30, 8), {"is_causal": True}),
    "causal, fewer keys": ((2, 3, 30, 8), (2, 3, 12, 8), {"is_causal": True}),
    "a mask": ((2, 3, 20, 8), (2, 3, 24, 8), {"attn_mask": some(20, 24) > -0.5}),
    "a mask for each sample": ((2, 3, 20, 8), (2, 3, 24, 8), {"attn_mask": some(2, 1, 20, 24)}),
    "a mask of the keys": ((2, 3, 20, 8), (2, 3, 24, 8), {"attn_mask": some(2, 1, 1, 24) > -0.5}),
    "a scale": ((2, 3, 20, 8), (2, 3, 20, 8), {"scale": 0.3}),
    "groups of heads": ((2, 6, 20, 8), (2, 3, 20, 8), {"is_causal": True, "enable_gqa": True}),
    "without heads": ((2, 20, 8), (2, 20, 8), {}),
}


def with_slopes(q_shape, k_shape, options):
    values = some(*q_shape), some(*k_shape), some(*k_shape).flip(0)
    with torch.no_grad(), forward_ad.dual_level(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        q, k, v = (forward_ad.make_dual(t, t.cos()) for t in values)
        return tuple(forward_ad.unpack_dual(F.scaled_dot_product_attention(q, k, v, **options)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scores", [1, 500, 1 << 20])
def test_the_same_as_all_at_once(case, scores, monkeypatch):
    monkeypatch.setattr(attention, "_MOST_SCORES", scores)
    wanted = with_slopes(*CASES[case])
    with SlicedAttention():
        found = with_slopes(*CASES[case])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_what_is_dropped_is_drawn_for_all_at_once(monkeypatch):
    monkeypatch.setattr(attention, "_MOST_SCORES", 1)
    q = some(1, 2, 20, 8)

    def dropped():
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)

    wanted = dropped()
    with SlicedAttention():
        assert torch.equal(dropped(), wanted)


def test_few_scores_at_once():
    model = torch.nn.Linear(1, 1)
    q = some(2, 4, 1024, 16, dtype=torch.float32)
    scores = 4 * 2 * 4 * 1024 * 1024

    def run():
        with torch.no_grad(), forward_ad.dual_level(), differentiable(model, set()):
            dual = forward_ad.make_dual(q, q.cos())
            F.scaled_dot_product_attention(dual, dual, dual, is_causal=True)

    assert peak_bytes(run) < scores
