"""What one optimizer step did, and what to do about it. The guard is the one object with memory."""

from stepguard.guard.guard import Guard, attach
from stepguard.guard.policy import ACTIONS, Action, Cadence, check_cadence, check_policy

__all__ = ["ACTIONS", "Action", "Cadence", "Guard", "attach", "check_cadence", "check_policy"]
