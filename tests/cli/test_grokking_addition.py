import pytest
import torch
from torch.utils.data import random_split

from stepguard.cli.grokking.addition import addition, mlp


def test_two_fifths_of_all_pairs_are_trained_on_and_the_rest_tested():
    data = addition(113)
    train, test = data.train_K.tolist(), data.test_K.tolist()
    assert (len(train), len(test)) == (5107, 7662)
    assert sorted(train + test) == list(range(12769))


@pytest.mark.parametrize("modulus", [2, 7, 113])
def test_every_pair_is_there_once_with_its_sum(modulus):
    data = addition(modulus)
    assert data.pairs_NP.dtype == torch.float32 and data.pairs_NP.shape == (modulus**2, 2 * modulus)
    one_hot = data.pairs_NP.unflatten(1, (2, modulus))
    assert ((one_hot == 1).sum(-1) == 1).all() and ((one_hot == 0).sum(-1) == modulus - 1).all()
    pairs = [tuple(pair) for pair in one_hot.argmax(-1).tolist()]
    assert len(set(pairs)) == modulus**2
    assert data.sums_N.tolist() == [(a + b) % modulus for a, b in pairs]


def test_the_draw_is_that_of_random_split_from_pytorchs_own_stream():
    torch.manual_seed(42)
    data = addition(113)
    torch.manual_seed(42)
    train, test = random_split(range(12769), [5107, 7662])
    assert (data.train_K.tolist(), data.test_K.tolist()) == (list(train.indices), list(test.indices))
    assert not torch.equal(addition(113).train_K, data.train_K)


def test_scaling_the_weights_scales_the_logits_and_nothing_else():
    data, model = addition(7), mlp(7, width=16).double()
    x = data.pairs_NP.double()
    before = model(x)
    with torch.no_grad():
        for p in model.parameters():
            p *= 3.0
    assert before.shape == (49, 7)
    torch.testing.assert_close(model(x), 27 * before)


def test_the_network_is_the_papers():
    assert [tuple(p.shape) for p in mlp(113).parameters()] == [(200, 226), (200, 200), (113, 200)]
