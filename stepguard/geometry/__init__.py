"""Pure tensors in, tensors out: how logits move and how far that may go, softmax collapse and its cures."""

from stepguard.geometry.collapse import SoftmaxCollapse, softmax_collapse
from stepguard.geometry.perp_grad import Over, nlm_alignment, nlm_alignments, perp_grad_
from stepguard.geometry.radii import exact_radius, slope_spread, spread_radius, step_ratio
from stepguard.geometry.stablemax import StableMaxCrossEntropyLoss, log_stablemax, stablemax_cross_entropy

__all__ = [
    "Over",
    "SoftmaxCollapse",
    "StableMaxCrossEntropyLoss",
    "exact_radius",
    "log_stablemax",
    "nlm_alignment",
    "nlm_alignments",
    "perp_grad_",
    "slope_spread",
    "softmax_collapse",
    "spread_radius",
    "stablemax_cross_entropy",
    "step_ratio",
]
