"""Quantiles against scipy's, and the interval of a measured mean."""

import pytest
from scipy.stats import norm, t

from moeprune.quantiles import half_width, normal_quantile, t_quantile


def test_quantiles_agree_with_scipy():
    for level in (0.5, 0.8, 0.9, 0.95):
        assert normal_quantile(level) == pytest.approx(norm.ppf((1 + level) / 2), rel=1e-9)
        for degrees in (5, 7, 15, 31, 63, 200):
            assert t_quantile(level, degrees) == pytest.approx(t.ppf((1 + level) / 2, degrees), rel=1e-3)


@pytest.mark.parametrize("n", [6, 10, 1000])
def test_half_width_is_that_of_students_interval(n):
    assert half_width(2.0, n) == pytest.approx(2 * t.ppf(0.975, n - 1), rel=1e-3)
    assert half_width(2.0, n, 0.9) == pytest.approx(2 * t.ppf(0.95, n - 1), rel=1e-3)


@pytest.mark.parametrize(("stderr", "n"), [(None, 100), (2.0, 5), (2.0, 0)])
def test_half_width_of_few_or_without_an_error_is_none(stderr, n):
    assert half_width(stderr, n) is None
