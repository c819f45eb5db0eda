"""Tables and picture of `step_time.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from step_parts import PARTS


@dataclass
class Measured:
    """What one trainer was measured at: seconds of plain steps, seconds by part of other steps, and the rest."""

    plain: list[float] = field(default_factory=list)
    by_part: list[dict[str, float]] = field(default_factory=list)
    operations: dict[str, float] = field(default_factory=dict)
    in_a_row: float | None = None  # seconds per step, alone
    start: float | None = None  # seconds to the end of the first step
    memory: float | None = None  # MiB
    objects: float | None = None  # that SAM was asked about, per step

    @property
    def seconds(self) -> float:
        """Median of the plain steps."""
        return statistics.median(self.plain)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part, which add up to a step: the mean over the middle half of the steps."""
        ranked = sorted(self.by_part, key=lambda step: sum(step.values()))
        quarter = len(ranked) // 4
        middle = ranked[quarter : len(ranked) - quarter]
        return {part: statistics.fmean(step[part] for step in middle) for part in PARTS}


def tables(found: Mapping[str, Measured]) -> str:
    """Markdown: step, memory and start, seconds by part, operations by part."""
    stock = next(iter(found.values()))
    lines = _header(
        ["trainer", "median s", "min", "max", "x stock", "in a row, s", "x stock", "peak MiB", "first step after s",
         "objects asked about"]
    )  # fmt: skip
    for name, one in found.items():
        alone = [f"{one.memory:.0f}", f"{one.start:.2f}"] if one.memory is not None else ["", ""]
        cells = [*alone, "" if one.objects is None else f"{one.objects:.1f}"]
        row = ["", ""]
        if one.in_a_row is not None and stock.in_a_row is not None:
            row = [f"{one.in_a_row:.3f}", f"{one.in_a_row / stock.in_a_row:.2f}"]
        times = f"{one.seconds:.3f} | {min(one.plain):.3f} | {max(one.plain):.3f} | {one.seconds / stock.seconds:.2f}"
        lines.append(f"| {name} | {times} | {' | '.join([*row, *cells])} |")
    lines += ["", *_by_part("seconds", {name: one.parts for name, one in found.items()}, 1.0, 3)]
    counted = {name: one.operations for name, one in found.items() if one.operations}
    if counted:
        lines += ["", *_by_part("GFLOP", counted, 1e9, 2)]
    return "\n".join(lines)


def _by_part(unit: str, found: Mapping[str, Mapping[str, float]], scale: float, digits: int) -> list[str]:
    lines = _header([unit, *found])
    totals = {name: sum(parts.values()) for name, parts in found.items()}
    for part in PARTS:
        cells = []
        for name, parts in found.items():
            share = 100 * parts[part] / totals[name] if totals[name] else 0.0
            cells.append(f"{parts[part] / scale:.{digits}f} ({share:.0f} %)" if parts[part] else "")
        lines.append(f"| {part} | {' | '.join(cells)} |")
    return [*lines, f"| **all** | {' | '.join(f'{total / scale:.{digits}f}' for total in totals.values())} |"]


def _header(names: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def picture(found: Mapping[str, Measured], file: Path, title: str) -> None:
    """Stacked bars by part: seconds, and operations where they were counted."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    panels = [("seconds", {name: one.parts for name, one in found.items()}, 1.0)]
    if all(one.operations for one in found.values()):
        panels.append(("GFLOP", {name: one.operations for name, one in found.items()}, 1e9))
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 1.6 + 0.6 * len(found)), squeeze=False)
    colors = plt.get_cmap("tab20").colors
    for axis, (unit, bars, scale) in zip(axes[0], panels, strict=True):
        left = [0.0] * len(bars)
        for number, part in enumerate(PARTS):
            widths = [parts[part] / scale for parts in bars.values()]
            axis.barh(list(bars), widths, left=left, color=colors[number], label=part)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.invert_yaxis()
        axis.set_xlabel(f"{unit} per iteration")
    figure.suptitle(title, fontsize=10)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=8, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(file, dpi=110)
    plt.close(figure)
