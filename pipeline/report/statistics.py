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


def verdict(diff: Difference | None, ours: Spread | None, base: Spread | None) -> Verdict:
    """Whether a difference stands out of the seed spread.

    yes: the mean difference is above its own standard deviation and above both backbones'
    standard deviations; worse: the same downwards; n/a: fewer than two seeds somewhere.
    """
    if diff is None or ours is None or base is None:
        return "n/a"
    if diff.std is None or ours.std is None or base.std is None:
        return "n/a"
    bar = max(diff.std, ours.std, base.std)
    if diff.mean > bar:
        return "yes"
    return "worse" if diff.mean < -bar else "no"


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
