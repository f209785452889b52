"""Look at a live model without touching it: its logits, the batch again, the slopes."""

from stepguard.probe.capture import NOTHING_SEEN, SeenStep
from stepguard.probe.probe import Probe
from stepguard.probe.slopes import logit_slopes

__all__ = ["NOTHING_SEEN", "Probe", "SeenStep", "logit_slopes"]
