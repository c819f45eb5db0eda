"""Statistics against values by hand, against scipy, and against differences that are known."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from nnunet_semisam.benchmark.comparison import bootstrap_interval, compare, draws_interval, wilcoxon


def test_wilcoxon_by_hand():
    # all of 5 differences positive: 1 of 32 sign patterns is as extreme on this side, 1 on the other
    assert wilcoxon(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert wilcoxon(np.zeros(6)) == 1.0


def test_one_draw_is_the_bootstrap_of_scipy():
    values = np.random.default_rng(0).gamma(2, 0.02, (1, 30)) - 0.03
    own = bootstrap_interval(values, resamples=20_000)
    ready = stats.bootstrap(
        (values[0],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert own == pytest.approx((ready.low, ready.high), abs=3e-4)


def test_two_draws_of_two_cases_by_hand():
    pairs = np.array([[1.0, 2.0], [5.0, 10.0]])
    # every choice of two rows and two columns, all equally likely
    means = [
        pairs[np.ix_(rows, columns)].mean()
        for rows in product((0, 1), repeat=2)
        for columns in product((0, 1), repeat=2)
    ]
    for level in (0.3, 0.6):
        expected = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        assert bootstrap_interval(pairs, resamples=40_000, level=level) == pytest.approx(expected, abs=0.01)


def test_draws_that_disagree_widen_the_interval_more_than_cases_that_repeat():
    cases = np.random.default_rng(0).normal(0.05, 0.01, 40)
    same, apart = np.stack([cases] * 4), cases + np.array([[-0.06], [-0.02], [0.02], [0.06]])
    one = bootstrap_interval(cases[None])
    assert bootstrap_interval(same) == pytest.approx(one, abs=1e-3)  # four copies are no more evidence
    low, high = bootstrap_interval(apart)
    assert high - low > 5 * (one[1] - one[0])


def test_of_draws_that_differ_and_cases_that_do_not_the_interval_is_students():
    of_draws = np.array([4.6, 1.4, 3.8])
    wanted = stats.t.interval(0.95, 2, of_draws.mean(), stats.sem(of_draws))
    assert draws_interval(np.repeat(of_draws[:, None], 5, axis=1)) == pytest.approx(wanted)
    of_cases = np.array([1.0, 4.0, 2.0, 9.0])  # the same in every draw: as many degrees of freedom as one likes
    low, high = draws_interval(of_cases + np.array([[-1e-9], [1e-9]]))
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * stats.sem(of_cases), rel=1e-3)


@pytest.mark.parametrize(("of_draws", "bootstrap"), [(1.0, 0.83), (2.0, 0.76)])
def test_for_three_draws_the_interval_holds_what_it_says_and_the_bootstrap_is_too_narrow(of_draws, bootstrap):
    """The coverages that the documents name; the standard deviation of cases, and of what is left, is 1."""
    rng = np.random.default_rng(5)
    inside = np.zeros(2)
    for _ in range(1000):
        pairs = rng.normal(0, of_draws, (3, 1)) + rng.normal(0, 1, (1, 16)) + rng.normal(0, 1, (3, 16))
        limits = draws_interval(pairs), bootstrap_interval(pairs, resamples=200)
        inside += [low <= 0 <= high for low, high in limits]
    assert 0.91 <= inside[0] / 1000 <= 0.97 and inside[1] / 1000 == pytest.approx(bootstrap, abs=0.03)


def test_one_draw_says_nothing_about_others_and_holes_leave_their_case_out():
    assert all(map(math.isnan, draws_interval(np.ones((1, 8)))))
    pairs = np.random.default_rng(6).normal(0, 1, (3, 8))
    torn = pairs.copy()
    torn[1, 2] = math.nan
    assert draws_interval(torn) == pytest.approx(draws_interval(np.delete(pairs, 2, axis=1)))


def test_a_planted_difference_is_found():
    rng = np.random.default_rng(3)
    baseline = rng.uniform(0.4, 0.9, (3, 20))
    found = compare(baseline + 0.03 + rng.normal(0, 0.02, baseline.shape), baseline)
    assert 0 < found.low < 0.03 < found.high and found.p < 0.001
    assert (found.cases, found.replicates) == (20, 3)


def test_without_a_difference_the_interval_holds_zero_about_as_often_as_it_says():
    rng = np.random.default_rng(4)
    inside, significant = 0, 0
    for _ in range(200):
        pairs = rng.normal(0, 0.05, (1, 30))
        low, high = bootstrap_interval(pairs, resamples=400)
        inside += low <= 0 <= high
        significant += wilcoxon(pairs[0]) < 0.05
    assert 0.89 <= inside / 200 <= 0.98  # the percentile bootstrap is a little too narrow
    assert significant / 200 <= 0.09


def test_pairs_with_a_hole_are_left_out():
    arm = np.array([[1.0, 2.0, math.nan], [2.0, math.nan, math.nan]])
    found = compare(arm, np.zeros((2, 3)))
    assert found.mean == pytest.approx(5 / 3) and (found.cases, found.replicates) == (2, 2)
    nothing = compare(np.full((1, 2), math.nan), np.zeros((1, 2)))
    assert nothing.cases == 0 and math.isnan(nothing.mean)
