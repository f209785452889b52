"""What happened in a run that was recorded, when it began, and why."""

from stepguard.diagnosis.case import Factor
from stepguard.diagnosis.diagnose import diagnose
from stepguard.diagnosis.finding import Diagnosis, Finding
from stepguard.diagnosis.post_mortem import PostMortem, post_mortem

__all__ = ["Diagnosis", "Factor", "Finding", "PostMortem", "diagnose", "post_mortem"]
