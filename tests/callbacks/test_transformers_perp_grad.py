"""perpGrad in the Trainer of Hugging Face: what the optimizer is given."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_trainers import MODELS, classifier, trainer
from transformers import TrainerCallback

from stepguard import perp_grad_
from stepguard.callbacks.transformers import PerpGrad


class Given(TrainerCallback):
    """How far along the weights the gradients are with which the optimizer steps, and how long the gradient is."""

    def __init__(self):
        self.alignments, self.norms = [], []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        given = [p for p in model.parameters() if p.grad is not None]
        pairs = [(p.flatten(), p.grad.flatten()) for p in given if p.norm() > 0]
        cosines = [F.cosine_similarity(w, g, dim=0).abs().item() for w, g in pairs]
        self.alignments.append(max(cosines))
        self.norms.append(nn.utils.get_total_norm([p.grad for p in given]).item())


WAYS = {
    "as it comes": {},
    "gradient accumulation": {"gradient_accumulation_steps": 3},
    "bf16 autocast": {"bf16": True},
    "gradient clipping": {"max_grad_norm": 0.01},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_the_optimizer_gets_perpendicular_gradients(model, way, tmp_path):
    plain, cured = Given(), Given()
    trainer(tmp_path, MODELS[model], plain, **WAYS[way]).train()
    trainer(tmp_path, MODELS[model], PerpGrad(), cured, **WAYS[way]).train()
    assert min(plain.alignments) > 1e-3 and max(cured.alignments) < 1e-5
    assert len(cured.norms) == 6 // WAYS[way].get("gradient_accumulation_steps", 1)
    if way == "gradient clipping":
        assert cured.norms == pytest.approx([0.01] * 6, rel=1e-2)


def test_as_in_a_plain_loop(tmp_path):
    settings = {"over": "all", "restore_norm": False, "matrices_only": True}
    steps = {"optim": "sgd", "max_grad_norm": 0, "lr_scheduler_type": "constant"}
    run = trainer(tmp_path, classifier, PerpGrad(**settings), **steps)
    loop = classifier()
    loop.load_state_dict(run.model.state_dict())
    run.train()
    optimizer = torch.optim.SGD(loop.parameters(), lr=0.05)
    for batch in run.data_collator.batches:
        optimizer.zero_grad()
        loop(**batch).loss.backward()
        perp_grad_(loop.parameters(), **settings)
        optimizer.step()
    torch.testing.assert_close(run.model.state_dict(), loop.state_dict(), rtol=1e-5, atol=1e-7)


def test_sparse_gradients_are_named():
    model = nn.ModuleDict({"words": nn.Embedding(7, 12, sparse=True)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model["words"](torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"cannot change words.weight: .*sparse=False"):
        PerpGrad().on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)


def test_a_wrong_setting_is_told_at_once():
    with pytest.raises(ValueError, match="got 'layer'"):
        PerpGrad(over="layer")
