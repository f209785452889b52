"""A run in words: what stands in a panel, and in a line where there is no terminal."""

from __future__ import annotations

import math

from stepguard.views.course import Course

_LITTLE, _SOON = 1.0, 500
"""Nats and steps, as a collapse monitor is set if nothing is said."""


def facts(course: Course) -> list[tuple[str, bool]]:
    """What is to be said of the latest step, each with whether it is bad news."""
    if course.reading is None and course.collapse is None:
        return [("no step yet", False)]
    said = [(f"step {course.step:,}", False)]
    if reading := course.reading:
        changed = reading.scale != 1 and not math.isnan(reading.scale)
        made = f" -> {reading.r * reading.scale if reading.scale else 0:.3g}" if changed else ""
        limit = "" if math.isnan(reading.target) else f" of {reading.target:g}"
        said.append((f"r {reading.r:.3g}{made}{limit}", reading.breach))
        if not math.isnan(reading.lr):
            said.append((f"lr {reading.lr:.3g}" + (f" -> {reading.lr_applied:.3g}" if changed else ""), changed))
        if reading.lr_safe is not None:
            said.append((f"safe up to {reading.lr_safe:.3g}", False))
        said.append((f"{course.beyond:,} of {course.measured:,} readings beyond", reading.breach))
    if course.pace:
        said.append((f"{course.pace:.3g} steps/s", False))
    shares = [r.cost_share for r in (course.reading, course.collapse) if r is not None and r.cost_share is not None]
    if shares:
        said.append((f"cost {sum(shares):.1%}", False))
    return said


def softmax(course: Course) -> list[tuple[str, bool]]:
    """How near the softmax is to collapse, and whether that is bad news; nothing where nobody looks."""
    reading = course.collapse
    if reading is None:
        return []
    cure = ", perpGrad on" if reading.curing else ""
    if reading.collapsed:
        return [(f"softmax collapsed for {reading.collapse:.1%} of the samples{cure}", True)]
    text = f"softmax {reading.headroom_nats:.1f} nats of headroom{cure}"
    if reading.forecast is None:
        return [(text, reading.headroom_nats < _LITTLE)]
    # From the latest step on, not from the one at which the softmax was last looked at.
    left = reading.forecast - course.step
    if left < 1:
        return [(f"{text}; at this rate collapse is due now", True)]
    in_time = f", in {span(left / course.pace)}" if course.pace and not course.ended else ""
    near = reading.headroom_nats < _LITTLE or left < _SOON
    return [(f"{text}; at this rate collapse at step {reading.forecast:,.0f}{in_time}", near)]


def state(course: Course, now: float) -> tuple[str, bool]:
    """Whether it runs, and whether that is as it should be."""
    since = max(now - (course.latest or now), 0.0)
    if course.ended:
        return f"ended {span(since)} ago" if since >= 10 else "ended", True
    return (f"silent for {span(since)}", False) if course.silent(now) else ("running", True)


def span(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> span(4.2), span(200), span(8000), span(400000)
        ('4 s', '3 min', '2.2 h', '4.6 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
