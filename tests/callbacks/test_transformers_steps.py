"""In the Trainer of Hugging Face: r against a float64 reference, step by step, whatever the trainer is asked to do."""

import pytest
from toy_trainers import MODELS, Moves, logged, trainer
from transformers import TrainingArguments

from stepguard.callbacks.transformers import StepGuard

# Since transformers 5 under a name of its own.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)
WAYS = {
    "as it comes": {},
    "gradient accumulation": {"gradient_accumulation_steps": 3},
    "bf16 autocast": {"bf16": True},
    "label smoothing": {"label_smoothing_factor": 0.2},
    "gradient clipping": {"max_grad_norm": 1e-3},
    "no gradient clipping": {"max_grad_norm": 0.0},
    "a cosine schedule with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "weight decay": {"weight_decay": 0.5},
    "Adafactor": {"optim": "adafactor"},
    "SGD": {"optim": "sgd", "learning_rate": 5.0},
    "gradient checkpointing": {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}},
    "reentrant gradient checkpointing": {
        CHECKPOINTING: True,
        f"{CHECKPOINTING}_kwargs": {"use_reentrant": True},
        "learning_rate": 0.005,  # a difference wants logits that move about straight
    },
    "torch.compile": {"torch_compile": True, "torch_compile_backend": "eager"},
}
BY_DIFFERENCE = {"reentrant gradient checkpointing": 0.05}
"""Where forward mode cannot run, and how near a finite difference comes."""
TARGETS = {"reentrant gradient checkpointing": 0.005}


@pytest.mark.filterwarnings("ignore:stepguard. r is measured by a finite difference")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, of a checkpoint run without
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own, of logits
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_every_step_has_the_reference_r_and_keeps_to_the_target(model, way, tmp_path):
    build, settings = MODELS[model], WAYS[way]
    moves = Moves(build, settings.get("gradient_accumulation_steps", 1))
    target = TARGETS.get(way, 0.05)
    guard = StepGuard(target=target, cadence="every", strict=True)
    run = trainer(tmp_path, build, guard, moves, **settings)
    run.train()
    r, scale = logged(run, "stepguard/r"), logged(run, "stepguard/scale")
    steps = 6 // moves.accumulated
    assert list(r) == list(range(1, steps + 1)) or list(r) == list(range(2, steps + 1))  # a warm-up begins at 0
    tolerance = BY_DIFFERENCE.get(way, 1e-3)
    for step in r:
        assert moves.r[step - 1] == pytest.approx(r[step] * scale[step], rel=tolerance)
        assert moves.r[step - 1] <= target * (1 + tolerance)
    assert max(moves.r) == pytest.approx(target, rel=tolerance) and min(scale.values()) < 1
