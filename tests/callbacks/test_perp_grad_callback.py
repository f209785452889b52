"""perpGrad in Lightning: what the optimizer is given, in every way in which a trainer makes a step."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins import MixedPrecision
from test_lightning import Module, TwoOptimizers, data, trainer
from test_lightning import pytestmark as pytestmark
from torch import nn

from stepguard import perp_grad_
from stepguard.callbacks import PerpGrad


class Given(torch.optim.SGD):
    """Remembers how far along the weights the gradients are with which it steps, and how long the gradient is."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        self.alignments, self.norms, self.largest = [], [], []

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        given = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        pairs = [(p.flatten(), p.grad.flatten()) for p in given]
        self.alignments.append(max(F.cosine_similarity(w, g, dim=0).abs().item() for w, g in pairs))
        self.norms.append(nn.utils.get_total_norm([p.grad for p in given]).item())
        self.largest.append(max(p.grad.abs().max().item() for p in given))
        return super().step()


class Observed(Module):
    def configure_optimizers(self):
        self.given = Given(self.parameters())
        return self.given


def fit(tmp_path, *callbacks, module=None, **settings):
    torch.manual_seed(0)
    module = module or Observed()
    trainer(tmp_path, *callbacks, **settings).fit(module, data())
    return module


@pytest.mark.parametrize("before_clipping", [False, True])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=str)
def test_the_optimizer_gets_perpendicular_gradients(tmp_path, before_clipping, settings):
    plain = fit(tmp_path, **settings).given
    cured = fit(tmp_path, PerpGrad(before_clipping=before_clipping), **settings).given
    assert min(plain.alignments) > 1e-3 and max(cured.alignments) < 1e-6
    assert len(cured.norms) == 6 // settings.get("accumulate_grad_batches", 1)
    assert cured.norms[0] == pytest.approx(plain.norms[0], rel=1e-5)


def test_as_in_a_plain_loop(tmp_path):
    found = fit(tmp_path, PerpGrad(over="all", restore_norm=False, matrices_only=True))
    torch.manual_seed(0)
    loop = Observed()
    optimizer = loop.configure_optimizers()
    for x, y in data():
        optimizer.zero_grad()
        F.cross_entropy(loop.model(x), y).backward()
        perp_grad_(loop.parameters(), over="all", restore_norm=False, matrices_only=True)
        optimizer.step()
    torch.testing.assert_close(found.state_dict(), loop.state_dict(), rtol=0, atol=0)


def test_before_or_after_clipping_by_value(tmp_path):
    clip = {"gradient_clip_val": 1e-2, "gradient_clip_algorithm": "value"}
    after, before = (fit(tmp_path, PerpGrad(before_clipping=b), **clip).given for b in (False, True))
    assert max(after.alignments) < 1e-6 < min(before.alignments)
    assert max(before.largest) <= 1.01e-2 < max(after.largest)


def test_clipping_by_norm_is_the_same_either_way(tmp_path):
    after, before = (fit(tmp_path, PerpGrad(before_clipping=b), gradient_clip_val=0.1) for b in (False, True))
    torch.testing.assert_close(after.state_dict(), before.state_dict())
    assert max(after.given.norms) == pytest.approx(0.1, rel=1e-4)


def test_a_gradient_scaler(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    given = fit(tmp_path, PerpGrad(), plugins=[plugin]).given
    assert len(given.norms) == 6 and max(given.alignments) < 1e-4
    assert given.norms[0] == pytest.approx(fit(tmp_path, PerpGrad()).given.norms[0], rel=1e-2)


@pytest.mark.parametrize("before_clipping", [False, True])
def test_lbfgs_compares_one_kind_of_gradient_only(tmp_path, before_clipping):
    class Closures(Module):
        def configure_optimizers(self):
            self.optimizer = torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)
            gather, self.gathered = self.optimizer._gather_flat_grad, []

            def keep():
                self.gathered += [F.cosine_similarity(p.flatten(), p.grad.flatten(), dim=0) for p in self.parameters()]
                return gather()

            self.optimizer._gather_flat_grad = keep
            return self.optimizer

    module = fit(tmp_path, PerpGrad(before_clipping=before_clipping), module=Closures())
    assert len(module.gathered) > 6 * 4 * 2  # several a step
    assert max(cosine.abs().item() for cosine in module.gathered) < 1e-6


def test_each_of_several_optimizers_its_own_parameters(tmp_path):
    class Manual(TwoOptimizers):
        def configure_optimizers(self):
            self.given = [Given(self.model[0].parameters()), Given(self.model[3].parameters())]
            return self.given

        def training_step(self, batch, index):
            optimizer = self.optimizers()[index % 2]
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    first, second = fit(tmp_path, PerpGrad(), module=Manual()).given
    assert len(first.alignments) == len(second.alignments) == 3
    assert max(first.alignments + second.alignments) < 1e-6


@pytest.mark.parametrize("before_clipping", [False, True])
def test_sparse_gradients_are_named(tmp_path, before_clipping):
    class Words(Observed):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(7, 12, sparse=True)

        def forward(self, x):
            return self.model(self.words((x[:, 0] > 0).long()))

    module = Words()
    with pytest.raises(MisconfigurationException, match=r"cannot change words.weight: .*sparse=False"):
        fit(tmp_path, PerpGrad(before_clipping=before_clipping), module=module)
    assert not module.given._optimizer_step_pre_hooks


def test_nothing_is_left_behind(tmp_path):
    assert not fit(tmp_path, PerpGrad()).given._optimizer_step_pre_hooks


def test_a_wrong_setting_is_told_at_once():
    with pytest.raises(ValueError, match="got 'layer'"):
        PerpGrad(over="layer")
