"""Tests and correlations of the report, by scipy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from scipy import stats

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
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return p if math.isfinite(p) else None


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties by mean rank; None of fewer than three points."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    return float(stats.spearmanr(x, y).statistic)
