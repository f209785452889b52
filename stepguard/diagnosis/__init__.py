"""What happened in a run that was recorded, when it began, and why."""

from stepguard.diagnosis.case import Factor
from stepguard.diagnosis.diagnose import Diagnosis, Finding, diagnose

__all__ = ["Diagnosis", "Factor", "Finding", "diagnose"]
