"""Callbacks for Lightning: ``from stepguard.callbacks import StepGuard``."""

from stepguard.callbacks.lightning.collapse import SoftmaxCollapseMonitor
from stepguard.callbacks.lightning.perp_grad import PerpGrad
from stepguard.callbacks.lightning.step_guard import StepGuard
from stepguard.callbacks.lightning.suggest_lr import SuggestLR

__all__ = ["PerpGrad", "SoftmaxCollapseMonitor", "StepGuard", "SuggestLR"]
