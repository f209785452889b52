"""StepGuard in the Trainer of Hugging Face: what it logs, what it leaves alone, how it resumes, how it ends."""

import json
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from reference import parameters_of
from test_transformers_steps import WAYS
from torch import nn
from toy_trainers import (
    MODELS,
    Moves,
    assert_bits,
    causal_lm,
    central_r,
    classifier,
    data,
    everything,
    hooks_of,
    logged,
    tensorboard,
    trainer,
)
from transformers import Trainer, TrainerCallback

from stepguard.callbacks.transformers import PerpGrad, SoftmaxCollapseMonitor, StepGuard, watching
from stepguard.records import METRICS

UNSEEN = [
    ("a causal LM", "as it comes"),
    ("a causal LM", "gradient accumulation"),
    ("a causal LM", "bf16 autocast"),
    ("a causal LM", "gradient checkpointing"),
    ("a causal LM", "Adafactor"),
    ("a sequence classifier", "as it comes"),
    ("a sequence classifier", "label smoothing"),
]


@pytest.mark.parametrize("model, way", UNSEEN)
def test_observe_is_invisible_to_the_bit(model, way, tmp_path):
    results = []
    for callbacks in ([], [StepGuard(action="observe", target=0.05, cadence="every", strict=True)]):
        evaluation = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
        run = trainer(tmp_path, MODELS[model], *callbacks, dropout=0.2, **{**WAYS[way], **evaluation})
        run.train()
        results.append((everything(run), run.evaluate()["eval_loss"], run.predict(run.eval_dataset).predictions))
    assert len(logged(run, "stepguard/r_breach")) > 1
    assert_bits(*results)


# The log


def test_our_metrics_are_in_the_trainers_own_log_beside_the_loss(tmp_path):
    run = trainer(tmp_path, causal_lm, StepGuard(strict=True), logging_steps=2)
    run.train()
    lines = [entry for entry in run.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in lines] == [2, 4, 6]
    for entry in lines:
        assert {m.key() for m in METRICS} <= set(entry) and json.dumps(entry)
    assert all(not any(k.startswith("stepguard") for k in e) for e in run.state.log_history if "train_loss" in e)


ADDED = {
    "given to the trainer": lambda run, guard: None,
    "added afterwards": lambda run, guard: run.add_callback(guard),
}


@pytest.mark.parametrize("added", ADDED)
def test_tensorboard_gets_the_cadence_and_every_breach(added, tmp_path):
    guard = StepGuard(target=0.05, strict=True)
    given = [guard] if added == "given to the trainer" else []
    run = trainer(tmp_path, causal_lm, *given, report_to="tensorboard", logging_steps=4, num_train_epochs=2)
    ADDED[added](run, guard)
    run.train()
    events = tensorboard(tmp_path)
    for metric in ("loss", *(m.key() for m in METRICS)):
        assert [e.step for e in events.Scalars(f"train/{metric}")] == [4, 8, 12], metric
    breaches = {e.step: e.value for e in events.Scalars("train/stepguard/r_breach")}
    assert breaches == pytest.approx(logged(run, "stepguard/r_breach")) and len(breaches) > 3
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("train/stepguard/events")]
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for tag in tags for e in events.Tensors(tag)]
    assert "r is that of the loss inside GPT2LMHeadModel" in texts[0][1]
    assert {step for step, text in texts if "scaled by" in text} == set(breaches)


@pytest.mark.parametrize("strategy", ["no", "epoch"])
def test_breaches_are_kept_even_where_the_trainer_logs_little(strategy, tmp_path):
    run = trainer(tmp_path, causal_lm, StepGuard(target=0.05, strict=True), logging_strategy=strategy)
    run.train()
    assert len(logged(run, "stepguard/r_breach")) == len(logged(run, "stepguard/events")) > 3
    assert list(logged(run, "stepguard/r")) == ([6] if strategy == "epoch" else [])


@pytest.mark.parametrize("quiet", [True, False], ids=["print", "progress bar"])
def test_the_screen_shows_our_metrics_and_no_line_of_its_own_for_each_breach(quiet, tmp_path, capsys):
    run = trainer(tmp_path, causal_lm, StepGuard(target=0.05), disable_tqdm=quiet, logging_steps=3)
    run.train()
    shown = "".join(capsys.readouterr())
    assert shown.count("'loss': ") == shown.count("'stepguard/r': ") == 2
    assert "r_breach" not in shown and "100%" in shown or quiet


class Listens(TrainerCallback):
    def __init__(self):
        self.heard = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.heard.append((state.global_step, set(logs)))


@pytest.mark.parametrize("order", [1, -1])
def test_other_callbacks_hear_it_in_any_order(order, tmp_path):
    ears, guard = Listens(), StepGuard(target=0.05, strict=True)
    run = trainer(tmp_path, causal_lm, *[guard, ears][::order], logging_steps=2)
    run.train()
    assert [step for step, names in ears.heard if "stepguard/r" in names] == [2, 4, 6]
    assert [step for step, names in ears.heard if "stepguard/r_breach" in names] == list(
        logged(run, "stepguard/r_breach")
    )


def test_a_trainer_that_cannot_be_found_still_keeps_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "calling_trainer", lambda: None)
    run = trainer(tmp_path, causal_lm, StepGuard(target=0.05, strict=True), logging_steps=3)
    run.train()
    assert list(logged(run, "stepguard/r")) == [3, 6] and len(logged(run, "stepguard/r_breach")) > 3


def test_what_an_evaluation_returns_has_nothing_of_ours(tmp_path):
    run = trainer(tmp_path, causal_lm, StepGuard(), eval_strategy="steps", eval_steps=1, logging_steps=2)
    run.train()
    evaluations = [set(entry) for entry in run.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == 6 and not any(name.startswith("stepguard") for e in evaluations for name in e)


def test_forecasts_know_the_trainers_schedule(tmp_path):
    guard = StepGuard(strict=True)
    run = trainer(tmp_path, causal_lm, guard, lr_scheduler_type="cosine", warmup_steps=2)
    run.train()
    guard._watcher._outlook._look_ahead(6, -1.0)
    assert guard._watcher._outlook.rate(6) == pytest.approx(0.0, abs=1e-9)  # the schedule has come to its end
    assert [e["learning_rate"] for e in run.state.log_history if "loss" in e][:3] == [0.0, 0.025, 0.05]


# Checkpoints


def resumed(folder, build, given, checkpoint=None, **settings):
    run = trainer(
        folder, build, *given, dropout=0.2, num_train_epochs=2, save_strategy="steps", save_steps=7, **settings
    )
    run.train(resume_from_checkpoint=checkpoint)
    return run


@pytest.mark.parametrize("model, target", [("a causal LM", 0.05), ("a sequence classifier", 1e6)])
def test_resumed_equals_uninterrupted_without_anything_to_be_set(model, target, tmp_path):
    build = MODELS[model]
    whole, again = StepGuard(target=target, strict=True), StepGuard(target=target, strict=True)
    want = everything(resumed(tmp_path, build, [whole]))
    run = resumed(tmp_path, build, [again], str(tmp_path / "checkpoint-7"))
    assert_bits(everything(run), want)
    ours, theirs = again.state()["attributes"]["saved"], whole.state()["attributes"]["saved"]
    for state in (ours, theirs):  # times differ
        del state["last"]["cost_share"], state["pacing"]["budget"], state["pacing"]["trigger"]["budget"]
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs)) and ours["step"] == 12


@pytest.mark.parametrize("first, second", [([StepGuard], []), ([], [StepGuard])], ids=["with, then without", "other"])
def test_checkpoints_with_and_without_stepguard_are_exchangeable(first, second, tmp_path):
    resumed(tmp_path, causal_lm, [kind(strict=True) for kind in first])
    run = resumed(tmp_path, causal_lm, [kind(strict=True) for kind in second], str(tmp_path / "checkpoint-7"))
    assert run.state.global_step == 12
    assert (
        "StepGuard" in json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())["stateful_callbacks"]
    )
    if second:
        guard = next(c for c in run.callback_handler.callbacks if isinstance(c, StepGuard))
        assert guard.state()["attributes"]["saved"]["step"] == 5


def test_the_trainers_own_way_of_restoring_callbacks_works_too(tmp_path):
    want = everything(resumed(tmp_path, causal_lm, [StepGuard(target=0.05, strict=True)]))
    restores = {"restore_callback_states_from_checkpoint": True}
    run = resumed(tmp_path, causal_lm, [StepGuard()], str(tmp_path / "checkpoint-7"), **restores)
    assert_bits(everything(run), want)  # with the target of then
    assert not hooks_of(run)


def test_a_function_cannot_be_restored_from_a_checkpoint(tmp_path):
    resumed(tmp_path, classifier, [StepGuard(logits=lambda out: out.logits)])
    again = [StepGuard(logits=lambda out: out.logits)]
    resumed(tmp_path, classifier, again, str(tmp_path / "checkpoint-7"))
    restores = {"restore_callback_states_from_checkpoint": True}
    with pytest.raises(ValueError, match="cannot hold its logits. Leave restore_callback.* at False"):
        resumed(tmp_path, classifier, again, str(tmp_path / "checkpoint-7"), **restores)


def test_a_second_training_begins_anew(tmp_path):
    guard = StepGuard(strict=True)
    run = trainer(tmp_path, causal_lm, guard)
    run.train()
    run.train()
    assert guard.last.step == 5 and len(hooks_of(run)) == 0


# The end


def broken(run, where):
    def bug(*args, **kwargs):
        raise KeyError("user's own bug")

    setattr(*{"loss": (run, "compute_loss", bug), "forward": (run.model.lm_head, "forward", bug)}[where])


@pytest.mark.parametrize("where", ["loss", "forward"])
def test_a_run_that_raises_leaves_no_hook(where, tmp_path):
    run = trainer(tmp_path, causal_lm, StepGuard(), SoftmaxCollapseMonitor())
    broken(run, where)
    with pytest.raises(KeyError, match="user's own bug"):
        run.train()
    assert not hooks_of(run)


def test_a_run_that_ends_leaves_no_hook(tmp_path):
    guard = StepGuard()
    run = trainer(tmp_path, causal_lm, guard, SoftmaxCollapseMonitor(), PerpGrad())
    run.train()
    assert not hooks_of(run) and guard.last.step == 5


def test_a_training_that_begins_anew_with_a_smaller_batch(tmp_path):
    guard = StepGuard(target=0.05, strict=True)
    run = trainer(tmp_path, causal_lm, guard, auto_find_batch_size=True)
    working, sizes = run.compute_loss, []

    def short_of_memory(model, inputs, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if len(sizes) == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return working(model, inputs, **kwargs)

    run.compute_loss = short_of_memory
    run.train()
    assert set(sizes[:3]) == {4} and guard.last.step == len(sizes[3:]) - 1 and not hooks_of(run)


def test_one_added_afterwards_lets_go_at_the_next_training_or_when_told(tmp_path):
    run, guard = trainer(tmp_path, causal_lm), StepGuard(strict=True)
    run.add_callback(guard)
    working = run.compute_loss
    broken(run, "loss")
    with pytest.raises(KeyError):
        run.train()
    guard.detach()
    assert not hooks_of(run)
    run.compute_loss = working
    run.train()
    assert guard.last.step == 5 and not hooks_of(run)


# Trainers and losses of one's own


def own_loss(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits / 2.0, labels)


class Distils(Trainer):
    """As subclasses do: a loss of its own, from logits, and a log of its own."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        out = model(**inputs)
        soft = F.one_hot(labels, 3) * 0.8 + 0.1
        loss = F.cross_entropy(out.logits, labels) + F.kl_div(out.logits.log_softmax(-1), soft, reduction="batchmean")
        return (loss, out) if return_outputs else loss

    def log(self, logs, start_time=None):
        super().log({**logs, "own": 1.0}, start_time)


OWN = {
    "compute_loss in a subclass": ({"kind": Distils}, 1.0),
    "compute_loss_func": ({"given": {"compute_loss_func": own_loss}}, 0.5),
}


@pytest.mark.parametrize("own", OWN)
def test_a_loss_of_ones_own(own, tmp_path):
    settings, factor = OWN[own]
    moves, guard = Moves(classifier), StepGuard(target=0.02, cadence="every", strict=True)
    run = trainer(tmp_path, classifier, guard, moves, **settings)
    run.train()
    r, scale = logged(run, "stepguard/r"), logged(run, "stepguard/scale")
    assert [factor * m for m in moves.r] == pytest.approx([r[s] * scale[s] for s in r], rel=1e-3)
    assert max(r[s] * scale[s] for s in r) == pytest.approx(0.02) and min(scale.values()) < 1
    if "kind" in settings:
        assert sum("own" in entry for entry in run.state.log_history) == 7  # none of those are ours


class Holds(nn.Module):
    """A softmax that is not PyTorch's own, of a model inside."""

    def __init__(self):
        super().__init__()
        self.inner = classifier()

    def forward(self, input_ids, labels):
        z = self.inner(input_ids).logits
        return {"loss": (z.exp().sum(-1).log() - z[range(len(z)), labels]).mean()}


def test_logits_of_a_submodule(tmp_path):
    model = Holds()
    guard = StepGuard(target=0.02, module="inner", logits=lambda out: out.logits, strict=True)
    run = trainer(tmp_path, lambda dropout: model, guard, given={"train_dataset": data(classifier)[:4]})
    old = parameters_of(model.inner)
    run.train()
    r = central_r(classifier, old, parameters_of(model.inner), run.data_collator.batches)
    assert r == pytest.approx(0.02, rel=1e-3)


# Misuse


@pytest.mark.parametrize("setting", [{"target": math.nan}, {"action": "clip"}, {"cadence": -1}, {"quantile": 0}])
def test_bad_settings_fail_when_written_down(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        StepGuard(**setting)


def test_a_submodule_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="no such submodule; its children are bert, dropout, classifier"):
        trainer(tmp_path, classifier, StepGuard(module="net")).train()


def test_two_of_them(tmp_path):
    with pytest.raises(ValueError, match="has 2 callbacks StepGuard"):
        trainer(tmp_path, causal_lm, StepGuard(), StepGuard(target=0.5)).train()


def test_an_optimizer_of_another_model(tmp_path):
    other = torch.optim.SGD(causal_lm().parameters(), 0.1)
    with pytest.raises(ValueError, match="not parameters of this GPT2LMHeadModel"):
        trainer(tmp_path, causal_lm, StepGuard(), given={"optimizers": (other, None)}).train()


def test_a_loss_that_is_no_softmax(tmp_path):
    def squares(outputs, labels, num_items_in_batch=None):
        return outputs.logits.square().mean()

    with pytest.warns(UserWarning, match="No softmax"):
        trainer(tmp_path, classifier, StepGuard(), given={"compute_loss_func": squares}).train()


@pytest.mark.parametrize("lacking", ["transformers", "accelerate"])
def test_without_transformers_it_says_what_to_install(lacking):
    code = f"import sys; sys.modules['{lacking}'] = None; import stepguard.callbacks.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        "ImportError" in done.stderr
        and lacking in done.stderr
        and "pip install 'stepguard[transformers]'" in done.stderr
    )
