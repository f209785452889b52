"""What one optimizer step did, and what to do about it. The guard is the one object with memory."""

from stepguard.guard.attach import attach, check_owned
from stepguard.guard.guard import Guard
from stepguard.guard.policy import ACTIONS, Action, BatchNorm, Cadence, Settings

__all__ = ["ACTIONS", "Action", "BatchNorm", "Cadence", "Guard", "Settings", "attach", "check_owned"]
