"""Numbers of the report: spread over seeds, differences, their test, rank correlations.

Written on scipy.special alone, imported where a p is computed: scipy.stats takes over a second to
import, scipy.special half of one, which every `status` and `plan` would pay.
"""

from __future__ import annotations

import importlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SIGNIFICANT = 0.05

Verdict = Literal["yes", "no", "worse", "baseline", "n/a"]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1; None for one value) of n values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Difference to the baseline.

    Paired: mean and sample standard deviation of the n differences over common seeds. Unpaired
    (no common seeds): difference of the means, sqrt(std_a^2 + std_b^2), n the smaller n.
    """

    mean: float
    std: float | None
    n: int
    paired: bool


def finite(value: float | None) -> float | None:
    """`value` as a float, or None where it is absent, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation, None of no values."""
    numbers = list(values)
    if not numbers:
        return None
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Spread(statistics.fmean(numbers), std, len(numbers))


def difference(ours: Mapping[int, float], base: Mapping[int, float]) -> Difference | None:
    """Difference of two {seed: value}, paired over the common seeds where there are any."""
    common = sorted(ours.keys() & base.keys())
    paired = spread(ours[seed] - base[seed] for seed in common)
    if paired is not None:
        return Difference(paired.mean, paired.std, paired.n, paired=True)
    a, b = spread(ours.values()), spread(base.values())
    if a is None or b is None:
        return None
    std = None if a.std is None or b.std is None else math.hypot(a.std, b.std)
    return Difference(a.mean - b.mean, std, min(a.n, b.n), paired=False)


def interval(diff: Difference | None) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean difference, by Student's t.

    None with fewer than two seeds, and where all differences are equal: without a spread nothing
    is known of how it scatters. Of an unpaired one with the smaller n, which is wider than Welch's.
    """
    if diff is None or diff.std is None or diff.std <= 1e-12 * abs(diff.mean):
        return None
    special: Any = importlib.import_module("scipy.special")
    quantile = float(special.stdtrit(diff.n - 1, 1 - SIGNIFICANT / 2))
    half = quantile * diff.std / math.sqrt(diff.n)
    return diff.mean - half, diff.mean + half


def verdict(diff: Difference | None) -> Verdict:
    """Return whether a difference is told apart from none: its 95 % interval is without 0.

    yes: upwards; worse: downwards; no: it is not; n/a: there is no interval.
    """
    bounds = interval(diff)
    if diff is None or bounds is None:
        return "no" if diff is not None and diff.std == diff.mean == 0 else "n/a"
    low, high = bounds
    return "yes" if low > 0 else "worse" if high < 0 else "no"


def leaders(values: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return the names of {name: {seed: value}} not told apart from the highest mean, it first.

    None where the highest mean is of one seed, and none with one seed among them. A gap that is
    equal over all seeds has no interval and counts as told apart.
    """
    means = {name: statistics.fmean(each.values()) for name, each in values.items() if each}
    ranked = sorted(means, key=lambda name: -means[name])
    several = [name for name in ranked if len(values[name]) > 1]
    if not ranked or several[:1] != ranked[:1]:
        return []
    top = values[ranked[0]]
    gaps = {name: difference(top, values[name]) for name in several}
    return [
        name for name, gap in gaps.items() if verdict(gap) == "no" or gap is None or gap.std is None
    ]


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
    special: Any = importlib.import_module("scipy.special")
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
