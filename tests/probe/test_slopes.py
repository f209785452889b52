import pytest
import torch
from reference import dense_slopes, mlp, parameters_of
from torch import nn
from torch.func import functional_call

from stepguard import logit_slopes


class SmallTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = self.embed(tokens)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        h = h + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h + self.ffn(h))


def batch_norm_net():
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(40, 5)
    )


CASES = {
    "mlp": (mlp, lambda: torch.randn(6, 12)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)), None),
    "batch norm in training": (batch_norm_net, None),
    "transformer with tied weights": (SmallTransformer, lambda: torch.randint(0, 11, (3, 7))),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [False, True])
def test_against_the_dense_float64_jacobian(case, frozen):
    build, inputs = CASES[case]
    model, x = build(), (inputs or CASES["mlp"][1])()
    params = parameters_of(model)
    update = {n: 0.01 * torch.randn_like(p) for n, p in params.items()}
    if frozen:
        update.pop(next(iter(update)))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    slopes = logit_slopes(lambda p: functional_call(model, {**p, **buffers}, (x,)), params, update)
    full = {n: update.get(n, torch.zeros_like(p)) for n, p in params.items()}
    want = dense_slopes(model, params, full, x)
    spread = (want.amax(-1) - want.amin(-1)).max()
    assert (slopes.double() - want).abs().max() <= 1e-5 * spread


def test_no_graph_no_gradient_and_no_grad_mode_needed():
    model, x = mlp(), torch.randn(2, 12)
    params = dict(model.named_parameters())
    update = {n: torch.ones_like(p) for n, p in params.items()}
    slopes = logit_slopes(lambda p: functional_call(model, p, (x,)), params, update)
    assert not slopes.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_an_update_that_reaches_no_logit_gives_zeros():
    slopes = logit_slopes(lambda p: torch.ones(2, 3), {"w": torch.ones(2)}, {"w": torch.ones(2)})
    assert slopes.tolist() == [[0.0] * 3] * 2


def test_an_unknown_parameter_is_named():
    with pytest.raises(KeyError, match="typo"):
        logit_slopes(lambda p: p["w"], {"w": torch.ones(2)}, {"typo": torch.ones(2)})
