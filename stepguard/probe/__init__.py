"""Look at a live model without touching it: how its loss comes to its logits, the batch again, the slopes."""

from stepguard.probe.explain import Explanation
from stepguard.probe.inputs import input_sizes
from stepguard.probe.mode_stack import no_modes
from stepguard.probe.outline import now
from stepguard.probe.probe import NoSoftmaxError, Probe, Screen
from stepguard.probe.rerun import Manner
from stepguard.probe.sharding import check_sharding, copies, is_sharded, part_here
from stepguard.probe.slopes import logit_slopes
from stepguard.probe.softmax import Look
from stepguard.probe.watch import NOTHING_SEEN, SeenStep

__all__ = [
    "NOTHING_SEEN",
    "Explanation",
    "Look",
    "Manner",
    "NoSoftmaxError",
    "Probe",
    "Screen",
    "SeenStep",
    "check_sharding",
    "copies",
    "input_sizes",
    "is_sharded",
    "logit_slopes",
    "no_modes",
    "now",
    "part_here",
]
