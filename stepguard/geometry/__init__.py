"""Pure tensors in, tensors out: how logits move along an update, and how far that may go."""

from stepguard.geometry.motion import LogitMotion, motion_of
from stepguard.geometry.radii import exact_radius, spread_radius, step_ratio

__all__ = ["LogitMotion", "exact_radius", "motion_of", "spread_radius", "step_ratio"]
