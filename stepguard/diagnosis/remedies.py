"""What to do about a cause, and why: sentences with numbers of the run, told where all of these are known."""

from __future__ import annotations

from typing import NamedTuple

from stepguard.diagnosis import causes


class Remedy(NamedTuple):
    """Something to do, for a reason.

    Attributes:
        do: What.
        because: Why.
        action: Only where the guard did this, if not None.
    """

    do: str
    because: str
    action: str | None = None


_CLAMP = Remedy(
    'guard the run with action="clamp"',
    "it would have made step {step} at most {scale} times as long, for r = {target}; in observe it went through with "
    "r = {r}",
    "observe",
)
_LOWER = Remedy(
    "lower the learning rate to {lr_limit} by step {step}",
    "with {lr_at} that step has r = {r}, and r is proportional to the rate",
)
_FRESH = Remedy(
    "save optimizer.state_dict() and that of the scheduler, and load both when the run goes on",
    "a new process began at step {resumed}, and its updates are {pull_grown} times as long per learning rate as "
    "before, for a gradient {gradient_times} times as large",
)
_SETTING = Remedy(
    "put {setting} of the optimizer back to {setting_before}, or lower the learning rate with the change",
    "it was changed to {setting_now} at about step {changed}, and r passed its target at step {step}",
)
_SAMPLE = Remedy(
    "look at sample {sample} of the batch of step {culprit_step}",
    "it has r = {culprit_r}: class {rising} rises over class {falling} by {spread} nats",
)

REMEDIES: dict[str, tuple[Remedy, ...]] = {
    causes.LR_JUMP: (
        Remedy(
            "look at what sets the learning rate at step {began}: the schedule, or a setting that changed",
            "it went from {lr_before} to {lr_at}; up to {lr_limit} would have kept to the target",
        ),
        _CLAMP,
    ),
    causes.LR_RAMP: (
        Remedy(
            "let the learning rate grow no further than {lr_limit}",
            "at {lr_at} step {step} has r = {r}, and r is proportional to the rate",
        ),
        _CLAMP,
    ),
    causes.WARM_RESTART: (
        _FRESH,
        Remedy(
            "restart the schedule at {lr_limit} or below, or warm up to it",
            "at {lr_at} step {step} has r = {r}, and r is proportional to the rate",
        ),
        _CLAMP,
    ),
    causes.OUTLIER: (
        _SAMPLE,
        Remedy(
            "normalise the inputs, or clip them",
            "the largest input of that batch has a norm of {input_norm_max}, the median one {input_norm}",
        ),
        Remedy(
            "check the labels of that batch",
            "one of its samples has a loss of {loss_max}, where {loss_max_usual} is usual for the largest of a batch",
        ),
        _CLAMP,
    ),
    causes.UNUSUAL_BATCH: (
        Remedy(
            "prepare the batch of step {began} as all others",
            "its inputs have a norm of {input_norm}, where {input_norm_usual} is usual",
        ),
        _CLAMP,
    ),
    causes.SMALLER_BATCH: (
        Remedy(
            "leave out batches that are not full: DataLoader(drop_last=True)",
            "this one has {samples} samples, where {samples_usual} are usual",
        ),
        _CLAMP,
    ),
    causes.LABEL_NOISE: (
        Remedy(
            "check the labels of the batches from step {began} on",
            "the loss is {loss_grown} at step {step}, where {loss_usual} is usual",
        ),
        Remedy(
            "check the labels of the batches from step {began} on",
            "the gradient norm is {gradient} at step {step}, where {gradient_usual} is usual",
        ),
        _SAMPLE,
        _CLAMP,
    ),
    causes.MOMENTUM: (
        _SETTING,
        Remedy(
            "lower the momentum, or the learning rate by as much",
            "with {momentum} the gradients of some {memory} steps add up, and the update is {gain_times} times as long "
            "as it was for the same gradient",
        ),
        _LOWER,
        _CLAMP,
    ),
    causes.OPTIMIZER_STATE: (
        _SETTING,
        _FRESH,
        Remedy(
            "warm the learning rate up again where the optimizer begins anew, and keep its betas and eps",
            "the update of step {step} is {pull_grown} times as long per learning rate as lately, for a gradient "
            "{gradient_times} times as large",
        ),
        Remedy("keep the optimizer's settings and what it remembers over a restart", "{evidence}"),
        _CLAMP,
    ),
    causes.WEIGHTS: (
        _SETTING,
        Remedy(
            "find what changes the weights from step {began} on: a checkpoint, a hook, a decay of the wrong sign",
            "their norm is {weights} at step {step}; at the start of the run it was {weights_first}",
        ),
        Remedy("make the weight decay positive", "it is {negative_decay}, which lets the weights grow"),
        _CLAMP,
    ),
    causes.SENSITIVITY: (
        _LOWER,
        Remedy(
            "keep the weights small, by weight decay or normalisation",
            "a step of the same length moves the logits {sensitivity_times} times as far as before",
        ),
        _CLAMP,
    ),
    causes.TOO_HIGH: (
        Remedy(
            "begin with a learning rate of {lr_limit}, or warm up to {lr_at}; stepguard.suggest_lr finds one",
            "at {lr_at} step {step} has r = {r}",
        ),
        _CLAMP,
    ),
    causes.NEAR: (_LOWER, _CLAMP),
    causes.COLLAPSE: (
        Remedy(
            "take the softmax of the loss in {wider}",
            "it has {headroom} nats of headroom in {dtype}, and would have {wider_headroom}",
        ),
        Remedy(
            'cure it: stepguard.monitor_collapse(on_warning="perp_grad"), or the PerpGrad callback',
            "the gradient is along the weights with a cosine of {scaling}: the logits grow, and little is learned",
        ),
        Remedy(
            "regularise: label smoothing or weight decay, or stepguard.stablemax_cross_entropy",
            "logits have grown from a norm of {logits_first} to {logits_last}",
        ),
    ),
    causes.NOT_FINITE: (
        Remedy(
            "look for numbers that are not finite in the batch of step {step}, and in what it computes",
            "{evidence}",
        ),
        Remedy(
            'guard the run with action="clamp"',
            "it withholds a step that is not finite, and the weights stay what they are; in observe step {step} was "
            "made",
            "observe",
        ),
        Remedy(
            "leave the guard as it is until then",
            "it has withheld {withheld}, not finite, and the weights stayed what they were",
            "clamp",
        ),
    ),
    "healthy": (
        Remedy(
            "try a larger learning rate, if training is slow",
            "in every part of the run 95% of the readings would have kept to the target with {room} times as much; "
            "other limits than that of the softmax may come before",
        ),
    ),
}
"""By cause."""

ANY = (
    Remedy(
        "see to the softmax before step {collapse_step}",
        "it has {headroom} nats of headroom left in {dtype}, {falling_by} less with each step",
    ),
    Remedy(
        "see why steps could not be measured: the events of kind unmeasured say it",
        "{unmeasured} went without a reading, and stand as the optimizer made them",
    ),
    Remedy(
        'if the steps should be longer, attach with clamp_to="limit", or with a larger target',
        "{held} steps in a row were shortened",
    ),
)
"""Whatever the cause."""
