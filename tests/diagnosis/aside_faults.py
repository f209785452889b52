"""What goes wrong in the runs kept aside: functions that change a training before the forward pass of a step."""

import torch
from aside_training import cross_entropy

# When


def at(step, change):
    """At one step only; what the change leaves behind stays."""
    return during(range(step, step + 1), change)


def during(steps, change):
    def fault(t):
        if t.step in steps:
            change(t)

    return fault


def since(step, change):
    """At that step and each one after."""
    return lambda t: change(t) if t.step >= step else None


def both(*faults):
    def fault(t):
        for each in faults:
            each(t)

    return fault


def rate_jump(step, factor, steps=None):
    """The learning rate is that many times as large, for so many steps or from then on."""
    up = at(step, lambda t: t.rates_times(factor))
    return both(up, at(step + steps, lambda t: t.rates_times(1 / factor))) if steps else up


# What is wrong with the batch


def labels_shuffled(share=1.0):
    def change(t):
        wrong = torch.rand(t.y.shape, generator=t.generator) < share
        other = t.y.flatten()[torch.randperm(t.y.numel(), generator=t.generator)].view_as(t.y)
        t.y = torch.where(wrong, other, t.y)

    return change


def labels_off_by_one(classes=10):
    def change(t):
        t.y = (t.y + 1) % classes

    return change


def one_label_for_all(label=3):
    def change(t):
        t.y = torch.full_like(t.y, label)

    return change


def one_sample_times(factor, wrong_label=False):
    def change(t):
        t.x, t.y = t.x.clone(), t.y.clone()
        t.x[0] *= factor
        if wrong_label:
            t.y[0] = (t.y[0] + 1) % (int(t.y.max()) + 1)

    return change


def one_number_is(value):
    """One input of one sample, such as a dead pixel or a missing value."""

    def change(t):
        t.x = t.x.clone()
        t.x[0].view(-1)[t.x[0].numel() // 2] = value

    return change


def inputs_times(factor):
    def change(t):
        t.x = t.x * factor

    return change


def inputs_are(function):
    def change(t):
        t.x = function(t.x)

    return change


def only(number):
    """What is left of a batch whose other samples were filtered out, or at the end of an epoch."""

    def change(t):
        t.x, t.y = t.x[:number], t.y[:number]

    return change


# What is wrong with the model or the optimizer


def weights_times(factor, name=""):
    def change(t):
        with torch.no_grad():
            for own, p in t.model.named_parameters():
                if own.startswith(name):
                    p.mul_(factor)

    return change


def setting(**values):
    def change(t):
        for group in t.optimizer.param_groups:
            group.update(values)

    return change


def no_state(t):
    t.optimizer.state.clear()


def no_second_moment(t):
    """The sizes of past gradients are lost, while the count of steps is kept."""
    for state in t.optimizer.state.values():
        state["exp_avg_sq"].zero_()


def loss_during(steps, loss):
    """Another loss than cross-entropy at some steps."""
    return lambda t: setattr(t, "loss", loss if t.step in steps else cross_entropy)


def no_loss(z, y):
    """That of a batch which is nothing but padding."""
    return 0 * cross_entropy(z, y)


def in_half(z, y):
    return cross_entropy(z.half(), y)


def in_bfloat16(z, y):
    return cross_entropy(z.bfloat16(), y)


def scaled_in_half(z, y):
    """As by hand-made loss scaling, beyond 65,504."""
    return (cross_entropy(z, y).half() * 2.0**16).float()
