"""Toy models, data and trainers of Hugging Face, and what r is of the steps that they make."""

import math

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

TOKENS = {"vocab_size": 24, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def causal_lm(dropout=0.0):
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    config = GPT2Config(**TOKENS, n_positions=8, n_embd=16, n_layer=2, n_head=2, **dropouts, use_cache=False)
    config.loss_type = "ForCausalLM"
    return GPT2LMHeadModel(config)


def classifier(dropout=0.0):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(**TOKENS, **sizes, **dropouts, num_labels=3))


MODELS = {"a causal LM": causal_lm, "a sequence classifier": classifier}


def data(build, samples=24):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, TOKENS["vocab_size"], (samples, 6), generator=generator)
    classes = torch.randint(0, 3, (samples,), generator=generator)
    labels = ids if build is causal_lm else classes
    return [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]


class Collator:
    """Remembers the batches, in the order in which they are trained on."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        self.batches.append(default_data_collator(rows))
        return self.batches[-1]


def trainer(folder, build, *callbacks, dropout=0.0, kind=Trainer, given=None, **settings):
    """Six optimizer steps of four samples, unless told otherwise."""
    torch.manual_seed(0)
    defaults = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 0.05,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "remove_unused_columns": False,  # the collator stays our own
    }
    rows = data(build)
    given = {"data_collator": Collator(), "train_dataset": rows, "eval_dataset": rows[:5], **(given or {})}
    arguments = TrainingArguments(str(folder), **{**defaults, **settings})
    return kind(model=build(dropout), args=arguments, callbacks=list(callbacks), **given)


def central_r(build, old, new, batches):
    """r of the move from ``old`` to ``new`` by a central difference of float64 logits, to about eight digits."""
    twin = build().double().eval()
    update = {name: new[name].double() - old[name].double() for name in old}
    worst = 0.0
    for batch in batches:
        ends = []
        for sign in (1, -1):
            at = {name: old[name].double() + sign * 1e-5 * update[name] for name in old}
            with torch.no_grad():
                ends.append(torch.func.functional_call(twin, at, kwargs={"input_ids": batch["input_ids"]}).logits)
        slopes = (ends[0] - ends[1]) / 2e-5
        if build is causal_lm:  # the last token of a text has no next one to be right about
            slopes = slopes[:, :-1]
        worst = max(worst, float((slopes.amax(-1) - slopes.amin(-1)).max()) / math.pi)
    return worst


class Moves(TrainerCallback):
    """The r of every optimizer step as the trainer made it."""

    def __init__(self, build, accumulated=1):
        self.build, self.accumulated, self.r = build, accumulated, []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.old = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step_end(self, args, state, control, model, train_dataloader, **kwargs):
        done = len(self.r) * self.accumulated
        batches = train_dataloader.collate_fn.batches[done : done + self.accumulated]
        new = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.r.append(central_r(self.build, self.old, new, batches))


def logged(run, key):
    """Step by step, what the trainer keeps of it in its own log."""
    return {entry["step"]: entry[key] for entry in run.state.log_history if key in entry}


def everything(run):
    """All that training leaves behind, to be compared to the bit; times and our own metrics aside."""
    aside = ("stepguard/", "softmax/", "eval_runtime", "eval_samples_per", "eval_steps_per")
    aside += ("train_",)  # of this call of train() alone
    log = [{k: v for k, v in entry.items() if not k.startswith(aside)} for entry in run.state.log_history]
    return {
        "parameters": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.lr_scheduler.state_dict()["_last_lr"],
        "random": torch.get_rng_state(),
        "log": [entry for entry in log if set(entry) > {"epoch", "step"}],
        "training": [m.training for m in run.model.modules()],
    }


def assert_bits(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def hooks_of(run):
    """Every hook that is left on its model and its optimizer."""
    optimizer = run.optimizer.optimizer
    left = [dict(optimizer._optimizer_step_pre_hooks), dict(optimizer._optimizer_step_post_hooks)]
    for module in run.model.modules():
        left += [dict(module._forward_hooks), dict(module._forward_pre_hooks)]
    return [hook for hooks in left for hook in hooks.values()]


def tensorboard(folder):
    """All that was written to the one run below it; TensorBoard itself shows a sample of 10 texts."""
    (written,) = folder.rglob("events.out.tfevents.*")
    return EventAccumulator(str(written), size_guidance={"tensors": 0}).Reload()
