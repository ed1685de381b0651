"""Spreads, differences, tests and correlations against values worked out by hand."""

import math

import pytest

from pipeline.report.statistics import (
    Difference,
    Spread,
    difference,
    interval,
    leaders,
    paired_p,
    rank_correlation,
    spread,
    verdict,
)


def test_spread_is_mean_and_sample_standard_deviation():
    found = spread([10.0, 12.0, 17.0])
    assert found == Spread(13.0, pytest.approx(math.sqrt((9 + 1 + 16) / 2)), 3)


def test_one_value_has_no_standard_deviation_and_none_no_spread():
    assert spread([4.0]) == Spread(4.0, None, 1)
    assert spread([]) is None


def test_difference_is_paired_by_seed_not_by_position():
    ours = {2: 30.0, 0: 20.0, 1: 25.0}
    base = {0: 10.0, 1: 14.0, 2: 21.0}
    # 20-10, 25-14, 30-21
    assert difference(ours, base) == Difference(10.0, pytest.approx(1.0), 3, paired=True)


def test_difference_uses_common_seeds_only():
    ours = {0: 20.0, 1: 26.0, 7: 900.0}
    base = {0: 10.0, 1: 14.0, 5: -900.0}
    assert difference(ours, base) == Difference(11.0, pytest.approx(math.sqrt(2)), 2, paired=True)


def test_one_common_seed_gives_a_difference_without_spread():
    assert difference({0: 5.0, 1: 9.0}, {0: 3.0, 2: 1.0}) == Difference(2.0, None, 1, paired=True)


def test_without_common_seeds_the_variances_add():
    # means 12 and 2, variances 8 and 2
    found = difference({0: 10.0, 1: 14.0}, {2: 1.0, 3: 3.0})
    assert found == Difference(10.0, pytest.approx(math.sqrt(10)), 2, paired=False)
    assert difference({0: 10.0}, {2: 1.0, 3: 3.0}) == Difference(8.0, None, 1, paired=False)
    assert difference({}, {2: 1.0}) is None


def test_the_interval_is_students_with_as_many_degrees_as_differences_but_one():
    # 10 and 20: mean 15, standard error 5; t of one degree of freedom is tan(0.475 pi)
    half = 5 * math.tan(0.475 * math.pi)
    found = interval(Difference(15.0, math.sqrt(50), 2, paired=True))
    assert found == pytest.approx((15 - half, 15 + half))
    assert interval(Difference(15.0, 0.0, 2, paired=True)) is None  # no spread, nothing known
    assert interval(Difference(15.0, None, 1, paired=True)) is None


@pytest.mark.parametrize(
    ("ours", "wanted"),
    [
        ((20.0, 21.0, 22.5), "yes"),
        ((0.0, 1.0, 2.5), "worse"),
        ((10.0, 12.0, 11.0), "no"),
        ((11.0, 11.0, 11.0), "n/a"),  # all differences are equal
        ((10.0, 10.0, 10.0), "no"),
        ((10.2, 14.0), "no"),  # two seeds, p = 0.4
        ((99.0,), "n/a"),
    ],
)
def test_told_apart_is_what_the_interval_says_as_p_does(ours, wanted):
    base = dict.fromkeys(range(3), 10.0)
    values = dict(enumerate(ours))
    assert verdict(difference(values, base)) == wanted
    p = paired_p(values, base)
    assert (p is not None and p < 0.05) == (wanted in ("yes", "worse"))


def test_verdict_of_nothing_is_not_available():
    assert verdict(None) == "n/a"


def test_leaders_are_not_told_apart_from_the_highest_mean():
    close, best, far = {0: 20.0, 1: 23.0, 2: 21.0}, {0: 21.0, 1: 22.0, 2: 23.0}, {0: 1.0, 1: 2.0}
    values = {"far": {**far, 2: 3.5}, "close": close, "best": best, "alone": {0: 3.0}, "none": {}}
    assert leaders(values) == ["best", "close"]
    assert leaders({"a": {0: 9.0}, "b": {0: 1.0}}) == []  # one seed
    assert leaders({"a": {0: 9.0}, "b": {0: 1.0, 1: 2.0}}) == []
    assert leaders({}) == []


def test_p_of_two_seeds_is_that_of_students_t_with_one_degree_of_freedom():
    # differences 9 and 11: mean 10, standard error 1, t = 10; one degree of freedom is Cauchy's
    ours, base = {0: 19.0, 1: 31.0}, {0: 10.0, 1: 20.0}
    assert paired_p(ours, base) == pytest.approx(1 - 2 * math.atan(10) / math.pi)


def test_p_uses_common_seeds_whatever_their_order():
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)); with two degrees of freedom
    # p = 1 - t / sqrt(2 + t^2)
    ours, base = {2: 13.0, 0: 11.0, 1: 12.0, 9: 500.0}, {0: 10.0, 1: 10.0, 2: 10.0, 8: -3.0}
    t = 2 * math.sqrt(3)
    assert paired_p(ours, base) == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert paired_p(base, ours) == pytest.approx(paired_p(ours, base))


@pytest.mark.parametrize(
    ("ours", "base"),
    [({0: 1.0}, {0: 2.0}), ({0: 1.0, 1: 2.0}, {2: 1.0}), ({0: 2.1, 1: 3.1}, {0: 1.1, 1: 2.1})],
)
def test_without_a_spread_of_common_seeds_there_is_no_p(ours, base):
    assert paired_p(ours, base) is None


def test_rank_correlation_is_of_ranks():
    assert rank_correlation([1, 10, 100], [5, 6, 7]) == pytest.approx(1.0)
    assert rank_correlation([1, 10, 100], [7, 6, 5]) == pytest.approx(-1.0)
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [20, 10, 40, 30]) == pytest.approx(0.6)
    # ranks 1.5 1.5 3 against 1 2 3: covariance 1.5 / (sqrt(1.5) * sqrt(2))
    assert rank_correlation([1, 1, 9], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
