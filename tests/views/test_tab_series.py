"""Down-sampling for the tab: whatever is left out, it is never an extreme and never a breach."""

import numpy as np
import pytest

from stepguard.views.tensorboard.series import extremes, marks, plain, visible

N = 5000
GENERATOR = np.random.default_rng(0)
STEPS = {
    "every step": np.arange(float(N)),
    "now and then": np.cumsum(GENERATOR.integers(1, 40, N)).astype(float),
    "a long pause": np.concatenate([np.arange(N / 2), 1e6 + np.arange(N / 2)]),
}
VALUES = {
    "noise": GENERATOR.normal(size=N),
    "all the same": np.ones(N),
    "with gaps": np.where(GENERATOR.random(N) < 0.3, np.nan, GENERATOR.normal(size=N)),
    "with infinities": np.where(GENERATOR.random(N) < 0.1, np.inf, GENERATOR.normal(size=N)),
    "nothing at all": np.full(N, np.nan),
}
BUCKETS = [1, 7, 400, N]


@pytest.mark.parametrize("buckets", BUCKETS)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("steps", STEPS)
def test_the_smallest_and_the_largest_of_every_stretch_are_there(steps, values, buckets):
    step, r = STEPS[steps], VALUES[values]
    rows = extremes({"step": step, "r": r}, ["r"], buckets)
    assert (np.diff(rows) > 0).all() and rows[0] == 0 and rows[-1] == N - 1
    assert len(rows) <= max(N if buckets >= N else 0, 2 * buckets + 2)
    edges = np.linspace(step[0], step[-1], buckets + 1)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = r[(step > low) & (step < high) & np.isfinite(r)]  # not those on an edge, which may go either way
        shown = r[rows][(step[rows] >= low) & (step[rows] <= high)]
        if len(inside):
            assert np.nanmin(np.where(np.isfinite(shown), shown, np.nan)) <= inside.min()
            assert np.nanmax(np.where(np.isfinite(shown), shown, np.nan)) >= inside.max()


def test_of_several_columns_each_has_its_extremes():
    table = {"step": np.arange(float(N)), "a": VALUES["noise"], "b": -(np.roll(VALUES["noise"], 13) ** 3)}
    rows = extremes(table, ["a", "b"], 10)
    for name in ("a", "b"):
        assert {table[name].argmin(), table[name].argmax()} <= set(rows)
    assert len(rows) <= 2 * 2 * 10 + 2


def breaching(n, beyond):
    r = np.where(beyond, GENERATOR.lognormal(2, 1, n) + 1.01, 0.3)
    r[np.flatnonzero(beyond)[::7]] = np.nan
    scale = np.where(beyond, GENERATOR.choice([0.0, 0.1, 1.0], n), 1.0)
    return {"step": np.arange(float(n)), "r": r, "scale": scale, "target": np.ones(n)}


def test_every_breach_is_a_mark():
    beyond = GENERATOR.random(N) < 0.2
    found = marks(breaching(N, beyond), N)
    assert [mark[0] for mark in found] == np.flatnonzero(beyond).tolist() and {mark[3] for mark in found} == {1}


def test_too_many_breaches_are_drawn_together_and_still_counted():
    table = breaching(N, np.ones(N, bool))
    found = marks(table, 300)
    assert len(found) <= 300 + 3 and sum(mark[3] for mark in found) == N
    for scale in (0.0, 0.1, 1.0):
        assert sum(mark[3] for mark in found if mark[2] == scale) == (table["scale"] == scale).sum()
    worst = np.nanmax(table["r"])
    assert any(mark[1] == worst or np.isnan(mark[1]) for mark in found)


def test_what_was_done_about_a_step_may_be_unknown():
    table = breaching(N, np.ones(N, bool))
    table["scale"][::3] = np.nan
    found = marks(table, 300)
    assert len(found) <= 300 + 4 and sum(mark[3] for mark in found if np.isnan(mark[2])) == len(table["scale"][::3])


def test_a_run_without_a_breach_has_no_mark():
    assert marks(breaching(5, np.zeros(5, bool)), 0) == []


VIEWS = {
    "all": (-np.inf, np.inf, 0, 10),
    "a part, and its neighbours": (3, 5, 2, 7),
    "between two steps": (3.2, 3.8, 3, 5),
    "before the first": (-9, -5, 0, 1),
    "after the last": (50, 60, 9, 10),
}


@pytest.mark.parametrize("view", VIEWS)
def test_what_is_in_view(view):
    first, last, low, high = VIEWS[view]
    assert visible(np.arange(10.0), first, last) == slice(low, high)


def test_an_empty_run_has_empty_charts():
    nothing = {name: np.empty(0) for name in ("step", "r", "scale", "target")}
    assert len(extremes(nothing, ["r"], 10)) == 0 and marks(nothing, 10) == []
    assert visible(nothing["step"], 0, 1) == slice(0, 0)


def test_what_json_does_not_have_is_nothing():
    assert plain(np.array([1.5, np.nan, np.inf, -np.inf])) == [1.5, None, None, None]
