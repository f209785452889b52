# Why a step cannot be measured, in the words that a user is told: what was found, and what to try.

FOREIGN = (
    "The logits depend on parameters by a way that cannot be run again, such as other trained parameters than the "
    "attached module's (attach to the module that holds both), or a custom autograd function or a compiled function "
    "between module and loss; else pass logits=, a function from the module's output to the logits, or forward=, a "
    "function that runs the model on a batch and returns its logits"
)
WRITES = "The module changes a tensor that it is given; from now on it is measured with copies of it"
UNSEEN = (
    "The module takes a tensor that was computed from parameters by another way than its arguments, such as an "
    "attribute set before; pass it as an argument, or pass forward=, a function that runs the model on a batch and "
    "returns its logits"
)
READ = (
    "The logits were computed with a number that was read off a tensor, as by .item(), which depends on the "
    "parameters as well; leave it a tensor, or pass forward=, a function that runs the model on a batch and returns "
    "its logits"
)
CHANGED_BY_ANOTHER = (
    "The logits come from a tensor that was changed in place through another one sharing its memory; change a copy, "
    "or pass forward=, a function that runs the model on a batch and returns its logits"
)
BATCH_CHANGED = (
    "A tensor that the training step used, such as the batch, was changed in place before the optimizer's step; change "
    "a copy, or pass forward=, a function that runs the model on a batch and returns its logits"
)
NO_SOFTMAX = (
    "No softmax or sigmoid cross-entropy was seen in the loss{what}. stepguard sees those that PyTorch's own "
    "functions take, outside of compiled code; for another, pass logits=, a function from the module's output to the "
    "logits that its softmax takes, or forward=, a function that runs the model on a batch and returns them. It has "
    "nothing to say about regression"
)
NO_LOSS = (
    "No softmax or sigmoid cross-entropy was seen in the loss. Softmax collapse is looked for where PyTorch's own "
    "functions take one, outside of compiled code; for another, call stepguard.softmax_collapse(logits, target)"
)
NO_SAMPLE = "No sample that the loss counts has finite logits and more than one class to choose from"
NO_CALL = (
    "The model was not called under grad since the last step. Attach to the module that the training step calls, or "
    "to one that holds it, or pass forward=, a function that runs the model on a batch and returns its logits"
)
MOVED_BY_ANOTHER = (
    "Another optimizer moved the model between the forward and this step, and it is not known where it was before. "
    "Where two optimizers share a backward pass, guard both, by the same cadence; or let this one make its step first"
)
HIDDEN = "it holds parameters in a way that does not let others be put there: scripted, or outside of modules"
OTHER_LOGITS = (
    "Running the model again on the same batch gave other logits than training saw, so its forward depends on "
    "more than inputs, weights, buffers and random state (or the batch was changed in place); pass forward=, a "
    "function that runs the model on a batch and returns its logits"
)
