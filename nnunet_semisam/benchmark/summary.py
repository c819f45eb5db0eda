"""Scores put together: one line per data set, budget, class and column, with the difference to the baseline."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from nnunet_semisam.benchmark.arms import Arm
from nnunet_semisam.benchmark.comparison import Difference, compare
from nnunet_semisam.benchmark.draws import ceilings, folds
from nnunet_semisam.benchmark.metrics import METRICS
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.runs import Run
from nnunet_semisam.benchmark.scores import FINAL, TEACHER

MEAN = "mean of classes"
LIMITS = ("difference", "low", "high", "draws_low", "draws_high", "p")


@dataclass(frozen=True)
class Line:
    """One column (an arm, or its teacher) at one budget, for one class or the mean of them.

    Args:
        means: of every metric, over cases, draws and seeds.
        spread: standard deviation of the mean Dice of draws and seeds; NaN for fewer than two.
        empty: predictions that missed the class or invented it.
        differences: to the baseline, by metric; none for the baseline itself.
    """

    dataset: str
    labels: str
    column: str
    label: str
    means: Mapping[str, float]
    spread: float
    replicates: int
    cases: int
    empty: int
    differences: Mapping[str, Difference] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """For a CSV file."""
        row: dict[str, Any] = {
            "dataset": self.dataset,
            "labels": self.labels,
            "column": self.column,
            "class": self.label,
        }
        row |= {"replicates": self.replicates, "cases": self.cases, "empty": self.empty, "spread": self.spread}
        for metric in METRICS:
            row[metric] = self.means[metric]
            difference = self.differences.get(metric)
            for limit in LIMITS:
                name = "mean" if limit == "difference" else limit
                row[f"{metric}_{limit}"] = "" if difference is None else getattr(difference, name)
            row[f"{metric}_pairs"] = "" if difference is None else f"{difference.cases} x {difference.replicates}"
        return row


class Scores:
    """All rows of scores, to be looked up."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows: dict[tuple, Mapping[str, Any]] = {}
        for row in rows:
            key = tuple(row[name] for name in ("dataset", "labels", "draw", "seed", "arm", "weights", "class", "case"))
            self.rows[key] = row

    def has(self, dataset: str, arm: Arm, weights: str) -> bool:
        return any((key[0], key[4], key[5]) == (dataset, arm.name, weights) for key in self.rows)

    def cube(self, places: list[list[tuple]], cases: list[str], metric: str) -> Float[np.ndarray, "D S C"]:
        """Values by draw, seed and case; `places` holds the beginnings of the keys, by draw and seed. NaN = none."""
        value = [[[self.rows.get((*key, c), {}).get(metric, math.nan) for c in cases] for key in d] for d in places]
        return np.array(value, dtype=float).reshape(len(places), -1, len(cases))

    def count(self, places: list[list[tuple]], cases: list[str]) -> int:
        """Missed and invented predictions; a run that serves several draws counts once."""
        keys = {(*key, case) for draw in places for key in draw for case in cases}
        return sum(self.rows.get(key, {}).get("empty") in ("missed", "invented") for key in keys)


def summarise(protocol: Protocol, runs: list[Run], rows: Iterable[Mapping[str, Any]]) -> list[Line]:
    """All lines, in the order of data sets, budgets, classes and arms."""
    scores = Scores(rows)
    lines: list[Line] = []
    for dataset in {run.dataset.name: run.dataset for run in runs}.values():
        found = folds(protocol, dataset)
        of = ceilings(found)
        classes = list(dataset.classes)
        for budget in map(str, protocol.budgets):
            cases = sorted({c for draw in protocol.draws for c in found[budget, draw].val[: protocol.max_cases]})
            for label in ([MEAN] if len(classes) > 1 else []) + classes:
                table = _Table(scores, dataset.name, classes if label == MEAN else [label], cases)
                for arm in protocol.arms:
                    for weights in (FINAL, TEACHER):
                        if scores.has(dataset.name, arm, weights):
                            used = [
                                found[budget, d] if arm.labels == "budget" else of[budget, d] for d in protocol.draws
                            ]
                            table.add(arm, weights, [(f.labels, f.draw) for f in used], protocol.seeds)
                lines += table.lines(budget, label, protocol.baseline)
    return lines


class _Table:
    """The columns of one data set, budget and class."""

    def __init__(self, scores: Scores, dataset: str, classes: list[str], cases: list[str]) -> None:
        self.scores, self.dataset, self.classes, self.cases = scores, dataset, classes, cases
        self.values: dict[str, dict[str, np.ndarray]] = {}
        self.empty: dict[str, int] = {}
        self.shared: set[str] = set()  # columns in which one run serves all draws

    def add(self, arm: Arm, weights: str, folds: list[tuple[str, str]], seeds: tuple[int, ...]) -> None:
        places = {
            name: [[(self.dataset, *fold, seed, arm.name, weights, name) for seed in seeds] for fold in folds]
            for name in self.classes
        }
        column = arm.name if weights == FINAL else f"{arm.name} (teacher)"
        self.values[column] = {
            metric: _nanmean(np.stack([self.scores.cube(p, self.cases, metric) for p in places.values()]), 0)
            for metric in METRICS
        }
        self.shared |= {column} if len(set(folds)) == 1 else set()
        self.empty[column] = sum(self.scores.count(p, self.cases) for p in places.values())

    def lines(self, budget: str, label: str, baseline: str) -> Iterable[Line]:
        for column, values in self.values.items():
            of_runs = _nanmean(values["dice"], 2)[: 1 if column in self.shared else None]
            of_runs = of_runs[~np.isnan(of_runs)]
            differences = {}
            if column != baseline and baseline in self.values:
                base = self.values[baseline]
                several = len(values["dice"]) > 1
                pairs = {m: (replicates(values[m]), replicates(base[m])) for m in METRICS}
                differences = {metric: compare(*pair, of_draws=several) for metric, pair in pairs.items()}
            yield Line(
                self.dataset, budget, column, label,
                means={metric: float(_nanmean(values[metric], None)) for metric in METRICS},
                spread=float(np.std(of_runs, ddof=1)) if len(of_runs) > 1 else math.nan,
                replicates=len(of_runs),
                cases=int((~np.isnan(values["dice"])).any((0, 1)).sum()),
                empty=self.empty[column],
                differences=differences,
            )  # fmt: skip


def replicates(cube: Float[np.ndarray, "D S C"]) -> Float[np.ndarray, "R C"]:
    """What the bootstrap resamples: draws, with seeds averaged; of a single draw its seeds."""
    return cube[0] if len(cube) == 1 else _nanmean(cube, 1)


def _nanmean(values: np.ndarray, axis: int | None) -> np.ndarray:
    """Mean without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))
