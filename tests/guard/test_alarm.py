import pytest

from stepguard.guard.alarm import Alarm
from stepguard.guard.budget import Budget
from stepguard.guard.collapse_settings import CollapseSettings
from stepguard.guard.trend import Trend
from stepguard.records import CollapseReading


def reading(step, headroom, forecast=None, dtype="float32"):
    return CollapseReading(
        step=step,
        samples=100,
        collapse=0.02 if headroom <= 0 else 0.0,
        headroom_nats=headroom,
        headroom_min=headroom - 1,
        headroom_median=headroom + 1,
        dtype=dtype,
        classes=10,
        trend=None if forecast is None else -0.01,
        forecast=forecast,
        zero_gradients=0.01,
        nlm_alignment=0.8,
    )


def kinds(alarm, *readings):
    return [[event.kind for event in alarm.judge(r)] for r in readings]


def test_nothing_is_said_where_nothing_is_near():
    assert kinds(Alarm(1.0, 500), reading(0, 18.0), reading(10, 12.0), reading(20, 7.0, 400.0)) == [[], [], []]


def test_a_warning_then_onset_then_recovery_each_once():
    alarm = Alarm(1.0, 500)
    got = kinds(alarm, *(reading(i, h) for i, h in enumerate([3.0, 0.9, 0.5, -0.1, -0.5, 0.5, 2.5, 8.0, 8.5, 9.0])))
    assert got == [[], ["warning"], [], ["onset"], [], [], [], [], ["recovery"], []]
    assert alarm.level == "calm"


def test_collapse_at_once_is_a_warning_and_an_onset():
    assert kinds(Alarm(1.0, 500), reading(0, -2.0)) == [["warning", "onset"]]


def test_a_forecast_warns_only_where_headroom_is_low():
    assert kinds(Alarm(1.0, 500), reading(0, 7.0, 100.0)) == [[]]
    assert kinds(Alarm(1.0, 500), reading(0, 3.0, 100.0)) == [["warning"]]
    assert kinds(Alarm(1.0, 500), reading(0, 3.0, 600.0)) == [[]]
    assert kinds(Alarm(1.0, 500), reading(0, 4.0, 100.0, "float16")) == [[]]  # of 7.6 that is not low
    assert kinds(Alarm(1.0, 500), reading(0, 4.0, 100.0, "float32, float16")) == [[]]


def test_a_headroom_that_wavers_about_the_limit_is_told_once():
    alarm = Alarm(1.0, 500)
    assert sum(kinds(alarm, *(reading(i, 1.0 + 0.3 * (-1) ** i) for i in range(20))), []) == ["warning"]


def test_the_warning_says_what_a_person_wants_to_know():
    (event,) = Alarm(1.0, 500).judge(reading(100, 3.0, 400.0))
    for text in ("step 100", "3.0 nats", "float32, 10 classes", "about step 400", "80% along the weights"):
        assert text in event.message
    event = Alarm(1.0, 500).judge(reading(100, -3.0))[1]
    assert "collapsed for 2.00% of the samples; 1.00% teach" in event.message


def test_a_trend_needs_five_readings():
    trend = Trend()
    for step in range(4):
        trend.add(step, 10.0 - step)
    assert trend.slope is None and trend.crosses_zero_at is None
    trend.add(4, 6.0)
    assert trend.slope == pytest.approx(-1) and trend.crosses_zero_at == pytest.approx(10)


def test_one_odd_batch_makes_no_forecast():
    trend = Trend()
    for step in range(12):
        trend.add(step, 0.5 if step == 11 else 10.0 - 0.1 * step)
    assert trend.crosses_zero_at == pytest.approx(100, rel=0.1)


def test_what_rises_is_not_forecast_and_what_is_there_is_now():
    rising, there = Trend(), Trend()
    for step in range(6):
        rising.add(step, 1.0 + step)
        there.add(step, 0.5 - step)
    assert rising.crosses_zero_at is None
    assert there.crosses_zero_at == 5


def test_a_trend_goes_on_where_it_was_saved():
    one, other = Trend(), Trend()
    for step in range(30):
        one.add(step, 10.0 - 0.1 * step)
    other.load_state_dict(one.state_dict())
    assert other.crosses_zero_at == one.crosses_zero_at == pytest.approx(100)


def test_a_budget_keeps_readings_below_its_share():
    for step, read in ((0.01, 0.001), (0.01, 0.02), (0.0005, 0.004), (1.0, 0.001)):
        budget = Budget(0.02, 32)
        for _ in range(40):
            budget.plain_step(step)
            budget.reading(read)
        assert budget.share < 0.02
        assert budget.every == 1 or budget.share > 0.02 / 5, "readings could be more frequent"


def test_a_budget_does_not_flutter():
    budget, seen = Budget(0.02, 32), set()
    for i in range(200):
        budget.plain_step(0.01)
        budget.reading(0.005 * (1 + 0.35 * (-1) ** (i // 7)))
        if i > 20:
            seen.add(budget.every)
    assert len(seen) == 1


def test_a_fixed_cadence_is_kept_whatever_it_costs():
    budget = Budget(0.02, 32, fixed=3)
    for _ in range(5):
        budget.plain_step(0.001)
        budget.reading(1.0)
    assert budget.every == 3 and budget.share > 0.9


def test_a_budget_goes_on_where_it_was_saved():
    one, other = Budget(0.02, 32), Budget(0.02, 32)
    for _ in range(10):
        one.plain_step(0.01)
        one.reading(0.02)
    other.load_state_dict(one.state_dict())
    assert (other.every, other.share) == (one.every, one.share)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"on_warning": "perpgrad"}, 'on_warning must be None, "perp_grad" or "stop", got \'perpgrad\''),
        ({"cadence": 0}, 'cadence must be "auto" or a positive number'),
        ({"cadence": True}, "cadence must be"),
        ({"cadence": "every"}, "cadence must be"),
        ({"horizon": 0}, "horizon must be a positive number of steps"),
        ({"headroom": -1.0}, "headroom must be a positive number of nats"),
        ({"headroom": float("nan")}, "headroom must be"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(setting, message):
    with pytest.raises(ValueError, match=message):
        CollapseSettings(**setting).checked()
