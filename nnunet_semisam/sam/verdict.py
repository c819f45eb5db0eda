"""What trials say about a generalist: one row per class and kind of prompt, a table, and whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from nnunet_semisam.sam.probe import Trial

COLUMNS = (
    *("class", "prompt from", "kinds", "patches", "objects"),
    *("Dice, prompt", "Dice, answer", "gain", "better", "rank corr.", "ms"),
)


FEW = 5  # patches: the ranks of fewer say nothing


@dataclass(frozen=True)
class Row:
    """The mean of some trials of one class.

    Args:
        name: of the class.
        source: where the prompting masks come from.
        kinds: of prompts.
        error: standard error of the gain; NaN with one patch.
        better: share of trials whose answer beats its prompt.
        rank: Spearman's correlation of predicted IoU with the true Dice of the answer; NaN where one does not vary, and
            with fewer than `FEW` patches.
        milliseconds: per patch.
    """

    name: str
    source: str
    kinds: tuple[str, ...]
    patches: int
    objects: int
    prompt: float
    answer: float
    error: float
    better: float
    rank: float
    milliseconds: float

    @property
    def gain(self) -> float:
        return self.answer - self.prompt

    @property
    def helps(self) -> bool:
        """Are answers at least as good as their prompts, in the mean?"""
        return self.gain >= 0


def summarize(trials: Sequence[Trial], *, name: str, source: str, kinds: Sequence[str]) -> Row:
    """The row of some trials; at least one."""
    table = np.array([(t.prompt, t.answer, t.quality, t.seconds) for t in trials])
    prompt, answer, quality, seconds = table.T
    return Row(
        name,
        source,
        tuple(kinds),
        patches=len(trials),
        objects=sum(t.objects for t in trials),
        prompt=float(prompt.mean()),
        answer=float(answer.mean()),
        error=float((answer - prompt).std(ddof=1) / math.sqrt(len(trials))) if len(trials) > 1 else math.nan,
        better=float((answer > prompt).mean()),
        rank=_spearman(quality, answer),
        milliseconds=1000 * float(seconds.mean()),
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [row.name, row.source, ", ".join(row.kinds), row.patches, row.objects, f"{row.prompt:.3f}"]
        cells += [f"{row.answer:.3f}", f"{row.gain:+.3f}", f"{row.better:.0%}"]
        cells += ["–" if math.isnan(row.rank) else f"{row.rank:.2f}", f"{row.milliseconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def sentence(row: Row) -> str:
    """Trust or not, for prompts like those of the row."""
    verdict = "trust it" if row.helps else "do not trust it"
    if math.isnan(row.error):
        verdict += " (not certain: a single patch)"
    elif abs(row.gain) < 2 * row.error:
        verdict += " (not certain: chance alone may give so small a difference on so few patches)"
    spread = "" if math.isnan(row.error) else f" ± {row.error:.3f}"
    return (
        f"{row.name}: {verdict}. Prompts of Dice {row.prompt:.3f} ({row.source}) get answers of {row.answer:.3f} "
        f"({row.gain:+.3f}{spread}); {row.better:.0%} of {row.patches} answers are better than their prompt."
    )


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < FEW or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
