"""Tests and correlations of the report.

Written on scipy.special alone: scipy.stats takes over a second to import, which every `status` and
`plan` would pay.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from scipy import special

SIGNIFICANT = 0.05


def paired_p(ours: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    """Return p of the two-sided paired t-test of two {seed: value} over their common seeds.

    None with fewer than two common seeds, and where all differences are equal: without a spread
    the test says nothing.
    """
    common = sorted(ours.keys() & base.keys())
    differences = [ours[seed] - base[seed] for seed in common]
    largest = max(map(abs, differences), default=0.0)
    if len(common) < 2 or max(differences) - min(differences) <= 1e-12 * largest:
        return None
    n = len(differences)
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    p = 2 * float(special.stdtr(n - 1, -abs(t)))
    return p if math.isfinite(p) else None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties by mean rank; None of fewer than three points."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return statistics.correlation(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 0, equal values sharing the mean of their ranks."""
    below = [sum(other < value for other in values) for value in values]
    return [b + (values.count(value) - 1) / 2 for b, value in zip(below, values, strict=True)]
