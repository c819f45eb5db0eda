"""Is an arm better than the baseline: paired bootstrap intervals, intervals for other draws, and Wilcoxon's test.

Rows are replicates (draws of the labels), columns are cases. Both are samples: the bootstrap resamples rows and
columns independently of each other (pigeonhole bootstrap, Owen, Ann. Appl. Stat. 1, 2007), so a case that is
easy in every draw and a draw that is good for every case are not counted as independent evidence. With one
row it is the usual bootstrap of cases, and says nothing about other draws. Of two to five rows it can only mix those:
it is too narrow for draws that were not made, and the interval with Student's t stands beside it.
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
        low, high: limits of the 95 % bootstrap interval.
        draws_low, draws_high: limits of the 95 % interval for other draws and cases; NaN for a single replicate.
        p: of Wilcoxon's test, two-sided, on the cases (each the mean over its replicates).
        cases, replicates: how many there were.
    """

    mean: float
    low: float
    high: float
    draws_low: float
    draws_high: float
    p: float
    cases: int
    replicates: int


def compare(
    arm: Float[np.ndarray, "R C"], baseline: Float[np.ndarray, "R C"], *, of_draws: bool = True, seed: int = 0
) -> Difference:
    """The paired difference; pairs of which one is NaN are left out.

    Args:
        of_draws: rows are draws of labeled cases; False: seeds of a single one, which say nothing about other draws.
    """
    pairs = arm - baseline
    pairs = pairs[:, ~np.isnan(pairs).all(0)]
    pairs = pairs[~np.isnan(pairs).all(1)]
    if pairs.size == 0:
        nan = math.nan
        return Difference(nan, nan, nan, nan, nan, nan, 0, 0)
    other = draws_interval(pairs) if of_draws else (math.nan, math.nan)
    limits = (*bootstrap_interval(pairs, seed=seed), *other)
    p = wilcoxon(np.nanmean(pairs, 0))
    return Difference(float(np.nanmean(pairs)), *limits, p=p, cases=pairs.shape[1], replicates=len(pairs))


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


def draws_interval(pairs: Float[np.ndarray, "R C"], *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean for rows and columns that are both samples, by analysis of variance and Student's t.

    The variance of the mean is (MS_R + max(MS_C - MS_RC, 0)) / (R C), its degrees of freedom (MS_R + max(MS_C - MS_RC,
    0))^2 / (MS_R^2 / (R - 1)): readers and cases in Hillis, Stat. Med. 26 (2007) 596, equations for two random factors;
    here rows are draws. NaN for fewer than two rows or columns. Columns with a hole are left out, mean included.
    """
    from scipy import stats

    pairs = pairs[:, ~np.isnan(pairs).any(0)]
    rows, columns = pairs.shape
    if min(rows, columns) < 2:
        return math.nan, math.nan
    mean = pairs.mean()
    of_rows, of_columns = pairs.mean(1, keepdims=True), pairs.mean(0, keepdims=True)
    rest = pairs - of_rows - of_columns + mean
    ms_rows = columns * float(((of_rows - mean) ** 2).sum()) / (rows - 1)
    ms_columns = rows * float(((of_columns - mean) ** 2).sum()) / (columns - 1)
    ms_rest = float((rest**2).sum()) / ((rows - 1) * (columns - 1))
    spread = ms_rows + max(ms_columns - ms_rest, 0.0)
    freedom = spread**2 / (ms_rows**2 / (rows - 1)) if ms_rows else math.inf
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(spread / (rows * columns))
    return float(mean) - reach, float(mean) + reach


def wilcoxon(differences: Float[np.ndarray, "C"]) -> float:
    """Two-sided p-value of the signed-rank test; 1 where nothing differs."""
    from scipy import stats

    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)
