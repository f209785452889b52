"""What one optimizer step did, and what to do about it. The guard is the one object with memory."""

from stepguard.guard.about import about
from stepguard.guard.attach import attach, check_owned, monitor_collapse
from stepguard.guard.collapse import CollapseMonitor
from stepguard.guard.collapse_settings import CollapseSettings, OnWarning
from stepguard.guard.guard import Guard
from stepguard.guard.outlook import Schedule, SteppedEvery, rates_from
from stepguard.guard.policy import ACTIONS, Action, BatchNorm, Cadence, ClampTo, Settings
from stepguard.guard.suggest import Suggestion, suggest_lr

__all__ = [
    "ACTIONS",
    "Action",
    "BatchNorm",
    "Cadence",
    "ClampTo",
    "CollapseMonitor",
    "CollapseSettings",
    "Guard",
    "OnWarning",
    "Schedule",
    "Settings",
    "SteppedEvery",
    "about",
    "Suggestion",
    "attach",
    "check_owned",
    "monitor_collapse",
    "rates_from",
    "suggest_lr",
]
