"""The numbers of a run that advice may name, in words; what is not known, or says nothing here, is not there."""

from __future__ import annotations

import math

import numpy as np

from stepguard.diagnosis.about import About
from stepguard.diagnosis.around import place_of
from stepguard.diagnosis.case import Case
from stepguard.diagnosis.done import Done
from stepguard.diagnosis.finding import Finding
from stepguard.diagnosis.rules.found import number
from stepguard.diagnosis.softmax import BITS, Softmax
from stepguard.diagnosis.track import Track

Known = dict[str, str]

_APART = 4.0
"""Times the median of its batch from which on something is worth a look."""
_GROWN = 1.5
"""Times as large as usual from which on it is worth a word."""
_MANY_HELD = 20
_LOW = 0.4
"""Share of the headroom that a dtype has, below which a forecast is believed, as the monitor does."""
_JUST_BEFORE = 50
"""Steps after a new process has begun in which that may be why."""
_AFTER_A_CHANGE = 100
"""The same of a setting that was changed."""


def of_the_guard(about: About, done: Done | None) -> Known:
    """What it did."""
    counts = {"unmeasured": done.unmeasured, "withheld": done.withheld} if done else {}
    known = {name: f"{n:,} step{'s' * (n != 1)}" for name, n in counts.items() if n}
    if done and done.longest_held >= _MANY_HELD and about.action == "clamp":
        known["held"] = f"{done.longest_held:,}"
    return known


def of_the_softmax(softmax: Softmax) -> Known:
    """How near it is to collapse, and what would keep it from that."""
    known = {"dtype": softmax.dtype, "headroom": number(softmax.last)}
    enough = next((wider for wider in softmax.wider if wider.last > 0), None)
    if enough:
        known |= {"wider": enough.dtype, "wider_headroom": number(enough.last)}
    if softmax.scales and not softmax.curing:
        known["scaling"] = f"{softmax.alignment:.2f}"
    first, last = softmax.logit_norm
    if last > 2 * first:
        known |= {"logits_first": number(first), "logits_last": number(last)}
    low = _LOW * math.log(2) * min((BITS.get(name, 0) for name in softmax.dtype.split(", ")), default=0)
    if softmax.forecast is not None and softmax.trend is not None and 0 < softmax.last < low:
        known |= {"collapse_step": f"{softmax.forecast:,.0f}", "falling_by": number(-softmax.trend)}
    return known


def of_the_finding(main: Finding, about: About, track: Track) -> Known:
    """What was measured where the run went wrong."""
    place = place_of(track, main.step)
    numbers = {} if place is None else _measured(Case(track, place), main)
    numbers |= _of_the_optimizer(about)
    known = {name: number(value) for name, value in numbers.items() if math.isfinite(value)}
    known |= {"step": f"{main.step:,}", "began": f"{main.began:,}"}
    resumed = [step for step in about.resumed if 0 <= main.step - step < _JUST_BEFORE]
    if resumed:
        known["resumed"] = f"{resumed[-1]:,}"
    if main.evidence:
        known["evidence"] = main.evidence[0]
    changed = [setting for setting in about.changed if 0 <= main.step - setting.step < _AFTER_A_CHANGE]
    if changed:
        step, name, before, now = changed[-1]
        known |= {"setting": name, "setting_before": f"{before:g}", "setting_now": f"{now:g}", "changed": f"{step:,}"}
    return known | _of_the_culprit(main)


def _measured(case: Case, main: Finding) -> dict[str, float]:
    now, usual, track = case.now, case.usual, case.track
    numbers = {
        name: now(column)
        for name, column in (("r", "r"), ("lr_at", "lr"), ("loss", "loss"), ("gradient", "gradient"))
        + (("weights", "weights"), ("samples", "samples"), ("input_norm", "input_norm"))
    }
    for name in ("loss", "loss_max", "gradient", "samples", "input_norm"):
        numbers[f"{name}_usual"] = usual(name)
    numbers |= {"target": now("target"), "gradient_times": case.grown("gradient")}
    if now("r") > now("target"):
        times = now("target") / now("r")
        numbers |= {"scale": times, "lr_limit": now("lr") * times}
    earlier = np.flatnonzero(track.step < main.began)
    numbers["lr_before"] = float(track.lr[earlier[-1]]) if len(earlier) else math.nan
    first = track.weights[np.isfinite(track.weights)][:1]
    numbers["weights_first"] = float(first[0]) if len(first) else math.nan
    grown = case.grown if case.sudden else case.grown_since
    numbers |= {"sensitivity_times": grown("sensitivity"), "gain_times": grown("gain")}
    for name, value, least in (
        ("pull_grown", case.grown("pull"), _GROWN),
        ("loss_grown", now("loss"), _GROWN * usual("loss")),
        ("loss_max", now("loss_max"), _GROWN * usual("loss_max")),
        ("input_norm_max", now("input_norm_max"), _APART * now("input_norm")),
    ):
        if value >= least:
            numbers[name] = value
    return numbers


def _of_the_optimizer(about: About) -> dict[str, float]:
    decay = about.hyper.get("weight_decay")
    known = {"negative_decay": float(decay)} if isinstance(decay, (int, float)) and decay < 0 else {}
    betas = about.hyper.get("betas") or [0.0]
    momentum = about.hyper.get("momentum") or betas[0]
    if isinstance(momentum, (int, float)) and 0 < momentum < 1:
        known |= {"momentum": float(momentum), "memory": 1 / (1 - momentum)}
    return known


def _of_the_culprit(main: Finding) -> Known:
    if not main.culprits:
        return {}
    worst = main.culprits[0]
    return {
        "sample": f"{worst.sample:,}",
        "culprit_step": f"{worst.step:,}",
        "culprit_r": number(worst.r),
        "rising": f"{worst.rising}",
        "falling": f"{worst.falling}",
        "spread": number(worst.spread),
    }
