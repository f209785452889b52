"""Look at a live model without touching it: its logits, the batch again, the slopes."""

from stepguard.probe.capture import CallCapture, ModelCall
from stepguard.probe.logits import LogitsError, class_dimension, find_logits
from stepguard.probe.replay import Replay
from stepguard.probe.slopes import logit_slopes, logits_and_slopes

__all__ = [
    "CallCapture",
    "ModelCall",
    "LogitsError",
    "Replay",
    "class_dimension",
    "find_logits",
    "logit_slopes",
    "logits_and_slopes",
]
