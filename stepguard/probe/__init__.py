"""Look at a live model without touching it: how its loss comes to its logits, the batch again, the slopes."""

from stepguard.probe.mode_stack import no_modes
from stepguard.probe.outline import now
from stepguard.probe.probe import Probe, Screen
from stepguard.probe.rerun import Manner
from stepguard.probe.slopes import logit_slopes
from stepguard.probe.watch import NOTHING_SEEN, SeenStep

__all__ = ["NOTHING_SEEN", "Manner", "Probe", "Screen", "SeenStep", "logit_slopes", "no_modes", "now"]
