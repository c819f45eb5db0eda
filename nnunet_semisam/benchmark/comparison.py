"""Is an arm better than the baseline: paired bootstrap intervals and Wilcoxon's signed-rank test.

Rows are replicates (draws of the labels), columns are cases. Both are samples: the interval resamples rows and
columns independently of each other (pigeonhole bootstrap, Owen, Ann. Appl. Stat. 1, 2007), so a case that is
easy in every draw and a draw that is good for every case are not counted as independent evidence. With one
row it is the usual bootstrap of cases, and says nothing about other draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """Arm minus baseline.

    Args:
        mean: over all pairs.
        low, high: limits of the 95 % interval.
        p: of Wilcoxon's test, two-sided, on the cases (each the mean over its replicates).
        cases, replicates: how many there were.
    """

    mean: float
    low: float
    high: float
    p: float
    cases: int
    replicates: int


def compare(arm: Float[np.ndarray, "R C"], baseline: Float[np.ndarray, "R C"], *, seed: int = 0) -> Difference:
    """The paired difference; pairs of which one is NaN are left out."""
    pairs = arm - baseline
    pairs = pairs[:, ~np.isnan(pairs).all(0)]
    pairs = pairs[~np.isnan(pairs).all(1)]
    if pairs.size == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0, 0)
    low, high = bootstrap_interval(pairs, seed=seed)
    return Difference(float(np.nanmean(pairs)), low, high, wilcoxon(np.nanmean(pairs, 0)), pairs.shape[1], len(pairs))


def bootstrap_interval(
    pairs: Float[np.ndarray, "R C"], *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean, rows and columns resampled."""
    rows, columns = pairs.shape
    rng = np.random.default_rng(seed)
    row_counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
    column_counts = rng.multinomial(columns, np.full(columns, 1 / columns), size=resamples).astype(float)
    there = ~np.isnan(pairs)
    total = (row_counts @ np.where(there, pairs, 0.0) * column_counts).sum(1)
    number = (row_counts @ there.astype(float) * column_counts).sum(1)
    means = total[number > 0] / number[number > 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilcoxon(differences: Float[np.ndarray, "C"]) -> float:
    """Two-sided p-value of the signed-rank test; 1 where nothing differs."""
    from scipy import stats

    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)
