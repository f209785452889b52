"""Pure tensors in, tensors out: how logits move along an update, and how far that may go."""

from stepguard.geometry.radii import exact_radius, slope_spread, spread_radius, step_ratio

__all__ = ["exact_radius", "slope_spread", "spread_radius", "step_ratio"]
