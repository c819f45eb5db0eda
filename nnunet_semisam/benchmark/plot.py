"""Dice against the number of labels, one picture per data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_semisam.benchmark.summary import Line

COLORS = ("#444444", "#9a9a9a", "#457b9d", "#8fb8d4", "#d62828", "#f08a8a", "#2a9d8f", "#e9a23b", "#7b5ea7", "#8d5b3f")


def draw_plot(lines: list[Line], file: Path, *, full: Iterable[str] = ()) -> None:
    """Writes the picture.

    Args:
        lines: of one data set and one class (or the mean of all).
        full: columns that do not depend on the budget; drawn as level lines.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    budgets = sorted({int(line.labels) for line in lines})
    columns = list(dict.fromkeys(line.column for line in lines))
    for number, column in enumerate(columns):
        own = {int(line.labels): line for line in lines if line.column == column}
        color = COLORS[number % len(COLORS)]
        if column in full:
            axis.axhline(own[budgets[0]].means["dice"], color=color, ls="--", lw=1.3, label=column)
        else:
            _curve(axis, own, budgets, color, column, (number - len(columns) / 2) * 0.02)
    axis.set_xticks(range(len(budgets)), list(map(str, budgets)))
    axis.set_xlim(-0.4, len(budgets) - 0.6)
    low, high = axis.get_ylim()
    if high - low < 0.01:  # all alike: no picture of rounding errors
        axis.set_ylim((low + high) / 2 - 0.05, (low + high) / 2 + 0.05)
    axis.set_xlabel("labeled cases")
    axis.set_ylabel(f"Dice ({lines[0].label})")
    axis.set_title(lines[0].dataset, fontsize=11)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _curve(axis: Any, own: dict[int, Line], budgets: list[int], color: str, name: str, shift: float) -> None:
    """Means, with the spread over draws and seeds as bars."""
    there = [budget for budget in budgets if budget in own]
    x = np.array([budgets.index(budget) for budget in there]) + shift
    y = [own[budget].means["dice"] for budget in there]
    spread = np.nan_to_num([own[budget].spread for budget in there])
    style = "--" if name.endswith("(teacher)") else "-"
    axis.errorbar(x, y, yerr=spread, color=color, ls=style, marker="o", ms=4, lw=1.6, capsize=2, label=name)
